#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/dtype.h"

namespace sparsekv {

// One tensor as the header of a safetensors file describes it.
struct SafetensorsRecord {
  std::string name;
  std::string dtype_name;       // as written in the file: "F32", "BF16", "I64", ...
  std::optional<DType> dtype;   // empty: a type of the format that no weight of ours may have
  std::vector<uint64_t> shape;  // outermost first; empty for a scalar
  uint64_t begin = 0;           // bytes [begin, end) after the header
  uint64_t end = 0;
};

// Parses and checks the JSON header of a safetensors file whose tensors take `data_bytes` bytes.
// Everything that comes back holds: the records lie in file order and fill the data without gap or
// overlap, each one's shape times its type's size is its length, names are unique UTF-8 of at most
// 1024 bytes. The error names what is wrong, and the tensor, but not the file.
absl::StatusOr<std::vector<SafetensorsRecord>> ParseSafetensorsHeader(std::string_view header,
                                                                      uint64_t data_bytes);

}  // namespace sparsekv
