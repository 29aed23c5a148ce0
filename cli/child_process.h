#pragma once

#include <sys/types.h>

#include <chrono>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace sparsekv {

// One child of `sparsekv serve`: how it is started, and started again when it dies. Single-threaded
// parent only (fork).
class ChildProcess {
 public:
  // `arguments`: argv with the program's path first. `fds`: descriptors that it inherits under the
  // same numbers; every other one must be close-on-exec.
  ChildProcess(std::string name, std::vector<std::string> arguments, std::vector<int> fds)
      : name_(std::move(name)), arguments_(std::move(arguments)), fds_(std::move(fds)) {}

  absl::Status Start();
  void Signal(int signal) const;

  // The child was reaped. False when it has died so often so quickly that starting it again is no
  // use.
  bool OnExit();
  // When it should be started again after OnExit.
  std::chrono::steady_clock::time_point restart_at() const { return restart_at_; }

  const std::string& name() const { return name_; }
  pid_t pid() const { return pid_; }  // 0 = not running
  bool running() const { return pid_ != 0; }
  // An option that only the first start gets (the ready pipe).
  void DropLastArguments(size_t count, int fd);

 private:
  std::string name_;
  std::vector<std::string> arguments_;
  std::vector<int> fds_;
  pid_t pid_ = 0;
  std::chrono::steady_clock::time_point started_{};
  std::chrono::steady_clock::time_point restart_at_{};
  int quick_deaths_ = 0;
};

// "exit 1", "signal 9 (Killed)": a wait status in words.
std::string DescribeExit(int wait_status);

}  // namespace sparsekv
