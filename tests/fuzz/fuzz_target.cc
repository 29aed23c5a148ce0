#include "tests/fuzz/fuzz_target.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>

#include "base/check.h"

namespace sparsekv::fuzz {
namespace {

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    const char* parent = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    path_ = std::string(parent) + "/sparsekv-fuzz-XXXXXX";
    CHECK(mkdtemp(path_.data()) != nullptr);
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace

const std::string& Directory() {
  static const TemporaryDirectory directory;
  return directory.path();
}

void WriteFile(const std::string& name, std::string_view content) {
  const std::string path = Directory() + "/" + name;
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  CHECK(fd >= 0);
  CHECK(write(fd, content.data(), content.size()) == static_cast<ssize_t>(content.size()));
  close(fd);
}

void CheckOneLine(std::string_view message) {
  CHECK(!message.empty());
  for (const char c : message) CHECK(static_cast<unsigned char>(c) >= 0x20);
}

}  // namespace sparsekv::fuzz
