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
  if (dir.size() + sizeof "/worker-000.sock" > sizeof(sockaddr_un::sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--state: ", dir, " is too long for the path of a Unix socket"));
  }
  const int lock = open((dir + "/lock").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
  if (lock < 0) return absl::ErrnoToStatus(errno, absl::StrCat("--state: ", dir, "/lock"));
  if (flock(lock, LOCK_EX | LOCK_NB) != 0) {
    close(lock);
    return absl::FailedPreconditionError(absl::StrCat("--state: another server runs on ", dir));
  }
  return std::unique_ptr<StateDir>(new StateDir(dir, path.empty(), lock));
}

StateDir::~StateDir() {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(path_, ignored)) {
    if (entry.path().extension() == ".sock") fs::remove(entry.path(), ignored);
  }
  if (temporary_) fs::remove_all(path_, ignored);
  close(lock_);
}

}  // namespace sparsekv
