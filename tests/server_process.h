#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

namespace sparsekv::testing {

// A finished command.
struct CommandResult {
  int code = -1;  // exit status, 128 + signal where it was killed
  std::string out, err;
};
// Runs build/bin/NAME to its end.
CommandResult RunBinary(const std::string& name, const std::vector<std::string>& arguments,
                        const std::string& input = "");

// `sparsekv serve` on free ports, ready when constructed.
class ServerProcess {
 public:
  explicit ServerProcess(const std::vector<std::string>& arguments);
  ~ServerProcess();

  const std::string& grpc() const { return grpc_; }
  const std::string& http() const { return http_; }
  pid_t pid() const { return pid_; }
  bool ready() const { return !grpc_.empty(); }

  // Its children, by the name of their binary.
  std::multimap<std::string, pid_t> Children() const;
  // SIGTERM, wait, exit status.
  int Stop();

  // GET of the HTTP port: the body, "" when it cannot be had.
  std::string Get(const std::string& path) const;
  // The value of one series of /metrics; -1 when it is not there.
  double Metric(const std::string& series) const;

 private:
  pid_t pid_ = 0;
  int stdout_ = -1;
  std::string grpc_, http_;
};

// Polls until `done` or `seconds` are over.
bool Eventually(const std::function<bool()>& done, double seconds = 20);

// A temporary directory that goes away.
class ScratchDir {
 public:
  ScratchDir();
  ~ScratchDir();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace sparsekv::testing
