#include "cli/child_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace sparsekv {

namespace {

constexpr std::chrono::seconds kQuick{5};  // a life shorter than this counts as a quick death
constexpr int kQuickDeathsMax = 10;
constexpr std::chrono::milliseconds kBackoff{50};  // doubles with every quick death

[[noreturn]] void Exec(const std::vector<std::string>& arguments, const std::vector<int>& fds) {
  setpgid(0, 0);  // a terminal's Ctrl-C is the parent's to handle: it drains first
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  for (int fd : fds) fcntl(fd, F_SETFD, 0);
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  execv(argv[0], argv.data());
  dprintf(STDERR_FILENO, "sparsekv: %s: %s\n", argv[0], std::strerror(errno));
  _exit(127);
}

}  // namespace

absl::Status ChildProcess::Start() {
  const pid_t pid = fork();
  if (pid < 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot start ", name_));
  }
  if (pid == 0) Exec(arguments_, fds_);
  pid_ = pid;
  started_ = std::chrono::steady_clock::now();
  return absl::OkStatus();
}

void ChildProcess::Signal(int signal) const {
  if (pid_ != 0) kill(pid_, signal);
}

bool ChildProcess::OnExit() {
  pid_ = 0;
  const auto now = std::chrono::steady_clock::now();
  quick_deaths_ = now - started_ < kQuick ? quick_deaths_ + 1 : 0;
  restart_at_ = now + (quick_deaths_ ? kBackoff * (1 << std::min(quick_deaths_, 6)) : kBackoff);
  return quick_deaths_ < kQuickDeathsMax;
}

void ChildProcess::DropLastArguments(size_t count, int fd) {
  arguments_.resize(arguments_.size() - count);
  std::erase(fds_, fd);
}

std::string DescribeExit(int wait_status) {
  if (WIFSIGNALED(wait_status)) {
    return absl::StrCat("signal ", WTERMSIG(wait_status), " (", strsignal(WTERMSIG(wait_status)),
                        ")");
  }
  return absl::StrCat("exit ", WEXITSTATUS(wait_status));
}

}  // namespace sparsekv
