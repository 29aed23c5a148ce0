#pragma once

#include <memory>
#include <set>
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

  // The path of a socket of this server; what lies there at the end is removed, nothing else is.
  std::string Socket(const std::string& name);

 private:
  StateDir(std::string path, bool temporary) : path_(std::move(path)), temporary_(temporary) {}
  absl::Status Lock();

  std::string path_;
  bool temporary_;
  int lock_ = -1;
  std::set<std::string> sockets_;
};

}  // namespace sparsekv
