#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/dtype.h"

namespace sparsekv {

// One tensor of an open file. `data` is aligned to the element size and lives as long as the file.
struct SafetensorsEntry {
  std::string dtype_name;       // as the file writes it
  std::optional<DType> dtype;   // empty: not a type that weights may have
  std::vector<uint64_t> shape;  // outermost first
  const std::byte* data = nullptr;
  uint64_t bytes = 0;
};

// A safetensors file, mapped read-only. Tensors are used where they lie, paged in on first touch;
// one that is misaligned for its type is copied once, at Open. Constant after Open, so any thread
// may read. The file must not be truncated while it is open (as for every mapped file, a read past
// the end is SIGBUS); replacing it by rename is fine.
class SafetensorsFile {
 public:
  // Every rule of the format is checked here (safetensors_header.h), before anything is allocated
  // by a size that the file names. Errors are one line and begin with the path.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const SafetensorsEntry* Find(std::string_view name) const;  // null when there is none
  const std::map<std::string, SafetensorsEntry, std::less<>>& entries() const { return entries_; }
  const std::string& path() const { return path_; }

 private:
  explicit SafetensorsFile(std::string path) : path_(std::move(path)) {}
  absl::Status Map();
  absl::Status ReadHeader();

  const std::string path_;
  const std::byte* base_ = nullptr;
  size_t bytes_ = 0;
  std::map<std::string, SafetensorsEntry, std::less<>> entries_;
  std::vector<std::unique_ptr<std::byte[]>> realigned_;
};

}  // namespace sparsekv
