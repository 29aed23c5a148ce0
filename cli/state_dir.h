#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace sparsekv {

// The directory of one server: the Unix sockets between its processes and the lock that keeps a
// second server out. Destruction removes the sockets, and the directory where it was a temporary
// one.
class StateDir {
 public:
  // `path` "" = a new temporary directory of mode 0700. FAILED_PRECONDITION when another server
  // holds it.
  static absl::StatusOr<std::unique_ptr<StateDir>> Open(const std::string& path);
  ~StateDir();

  std::string Socket(const std::string& name) const { return path_ + "/" + name + ".sock"; }

 private:
  StateDir(std::string path, bool temporary, int lock)
      : path_(std::move(path)), temporary_(temporary), lock_(lock) {}

  std::string path_;
  bool temporary_;
  int lock_;
};

}  // namespace sparsekv
