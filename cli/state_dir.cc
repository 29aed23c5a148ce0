#include "cli/state_dir.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>

#include "absl/strings/str_cat.h"

namespace sparsekv {

namespace fs = std::filesystem;

absl::StatusOr<std::unique_ptr<StateDir>> StateDir::Open(const std::string& path) {
  std::string dir = path;
  if (path.empty()) {
    std::string form = (fs::temp_directory_path() / "sparsekv-XXXXXX").string();
    if (mkdtemp(form.data()) == nullptr) {
      return absl::ErrnoToStatus(errno, absl::StrCat("--state: cannot make ", form));
    }
    dir = form;
  } else {
    std::error_code error;
    fs::create_directories(dir, error);
    if (error) {
      return absl::FailedPreconditionError(absl::StrCat("--state: ", dir, ": ", error.message()));
    }
    dir = fs::absolute(dir).string();
  }
  std::unique_ptr<StateDir> state(new StateDir(dir, path.empty()));
  if (absl::Status status = state->Lock(); !status.ok()) return status;
  return state;
}

absl::Status StateDir::Lock() {
  if (path_.size() + sizeof "/worker-000.sock" > sizeof(sockaddr_un::sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--state: ", path_, " is too long for the path of a Unix socket"));
  }
  lock_ = open((path_ + "/lock").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
  if (lock_ < 0) return absl::ErrnoToStatus(errno, absl::StrCat("--state: ", path_, "/lock"));
  if (flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    return absl::FailedPreconditionError(absl::StrCat("--state: another server runs on ", path_));
  }
  return absl::OkStatus();
}

std::string StateDir::Socket(const std::string& name) {
  return *sockets_.insert(path_ + "/" + name + ".sock").first;
}

StateDir::~StateDir() {
  std::error_code ignored;
  for (const std::string& socket : sockets_) {
    if (fs::is_socket(socket, ignored)) fs::remove(socket, ignored);
  }
  if (temporary_) fs::remove_all(path_, ignored);
  if (lock_ >= 0) close(lock_);
}

}  // namespace sparsekv
