#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"

// Reads a JSON file that nobody vouches for.
namespace sparsekv {

inline constexpr size_t kMaxJsonFileBytes = size_t{64} << 20;
inline constexpr size_t kMaxJsonDepth = 32;  // objects and arrays inside each other

// The bytes of a file. NotFound when there is none; InvalidArgument, in one line that names it,
// when it is not a regular file (through symbolic links) or is larger than `max_bytes`.
absl::StatusOr<std::string> ReadRegularFile(const std::string& path, size_t max_bytes);

// NotFound when there is no such file. InvalidArgument, in one line that names the file, when it is
// not a regular file (through symbolic links, as hub caches have them), is larger than `max_bytes`,
// is not JSON, is nested deeper than kMaxJsonDepth or has a key twice in one object.
absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path,
                                            size_t max_bytes = kMaxJsonFileBytes);

}  // namespace sparsekv
