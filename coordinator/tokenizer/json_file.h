#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"

// Reads a JSON file that nobody vouches for.
namespace sparsekv::tokenizer {

inline constexpr size_t kMaxJsonFileBytes = size_t{64} << 20;
inline constexpr size_t kMaxJsonDepth = 32;  // objects and arrays inside each other

// NotFound when there is no such file. InvalidArgument, in one line that names the file, when it is
// not a regular file, is larger than kMaxJsonFileBytes, is not JSON, is nested deeper than
// kMaxJsonDepth or has a key twice in one object.
absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path);

}  // namespace sparsekv::tokenizer
