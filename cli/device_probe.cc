#include "cli/device_probe.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "base/shared_memory.h"

namespace sparsekv {

// The worker prints "device ORDINAL BYTES NODE" for each device, or "none WHY".
absl::StatusOr<DeviceProbe> ProbeDevices(const std::string& worker_program) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    return absl::InternalError(absl::StrCat("pipe: ", std::strerror(errno)));
  }
  const UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, write_end.get(), STDOUT_FILENO);
  std::string program = worker_program, option = "--probe";
  char* argv[] = {program.data(), option.data(), nullptr};
  pid_t child = 0;
  const int error = posix_spawn(&child, program.c_str(), &actions, nullptr, argv, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    return absl::InternalError(absl::StrCat(program, ": ", std::strerror(error)));
  }
  write_end = UniqueFd();
  std::string text;
  char buffer[512];
  for (ssize_t n; (n = read(read_end.get(), buffer, sizeof(buffer))) != 0;) {
    if (n < 0 && errno != EINTR) break;
    if (n > 0) text.append(buffer, static_cast<size_t>(n));
  }
  int exit = 0;
  while (waitpid(child, &exit, 0) < 0 && errno == EINTR) {
  }
  DeviceProbe probe;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("device ")) {
      DeviceProbe::Device device;
      std::istringstream(line.substr(7)) >> device.ordinal >> device.free_bytes >> device.node;
      probe.devices.push_back(device);
    } else if (line.starts_with("none ")) {
      probe.why = line.substr(5);
    }
  }
  if (probe.devices.empty() && probe.why.empty()) {
    probe.why = WIFEXITED(exit)
                    ? absl::StrCat("the worker's probe ended with exit code ", WEXITSTATUS(exit))
                    : absl::StrCat("the worker's probe ended by signal ", WTERMSIG(exit));
  }
  return probe;
}

}  // namespace sparsekv
