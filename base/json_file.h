#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"

// Reads a JSON file that nobody vouches for.
namespace sparsekv {

inline constexpr size_t kMaxJsonFileBytes = size_t{64} << 20;
inline constexpr size_t kMaxJsonDepth = 32;  // objects and arrays inside each other

// NotFound when there is no such file. InvalidArgument, in one line that names the file, when it is
// not a regular file (through symbolic links, as hub caches have them), is larger than `max_bytes`,
// is not JSON, is nested deeper than kMaxJsonDepth or has a key twice in one object.
absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path,
                                            size_t max_bytes = kMaxJsonFileBytes);

}  // namespace sparsekv
