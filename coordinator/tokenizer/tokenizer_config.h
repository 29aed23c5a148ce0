#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/tokenizer/added_tokens.h"

namespace sparsekv::tokenizer {

// What of tokenizer_config.json matters here; its other fields are not looked at.
struct TokenizerConfig {
  std::optional<bool> add_bos_token;
  std::optional<bool> add_eos_token;
  // Named as a string or an object with the flags of an added token; their ids are not known here.
  std::optional<AddedToken> bos_token;
  std::optional<AddedToken> eos_token;
  std::optional<AddedToken> unk_token;
  std::optional<AddedToken> pad_token;
  std::vector<std::string> additional_special_tokens;
  bool legacy = true;  // how a sentencepiece model treats the text after an added token
  bool add_prefix_space = true;
  std::vector<AddedToken> added_tokens;  // added_tokens_decoder, with their ids

  bool IsNamed(std::string_view token) const;  // as one of the four or an additional one
};

// A file that does not exist says nothing. Other errors are as those of ReadJsonFile, or name the
// field of the wrong type.
absl::StatusOr<TokenizerConfig> ReadTokenizerConfig(const std::string& path);

// The same from what directories held before: special_tokens_map.json (the four tokens by name, as
// far as `config` has none) and added_tokens.json ({"text": id}, when it has no added tokens).
absl::Status ReadOlderFiles(const std::string& model_dir, TokenizerConfig* config);

}  // namespace sparsekv::tokenizer
