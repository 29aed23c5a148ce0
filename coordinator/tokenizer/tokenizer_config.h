#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace sparsekv::tokenizer {

// What of tokenizer_config.json matters here; its other fields are not looked at.
struct TokenizerConfig {
  bool add_bos_token = false;
  std::optional<std::string> bos_token;
};

// A file that does not exist says nothing. Other errors are as those of ReadJsonFile, or name the
// field of the wrong type.
absl::StatusOr<TokenizerConfig> ReadTokenizerConfig(const std::string& path);

}  // namespace sparsekv::tokenizer
