#include "coordinator/tokenizer/tokenizer_config.h"

#include "absl/status/status.h"
#include "base/json_file.h"
#include "coordinator/tokenizer/json_cursor.h"

namespace sparsekv::tokenizer {

absl::StatusOr<TokenizerConfig> ReadTokenizerConfig(const std::string& path) {
  const absl::StatusOr<nlohmann::json> json = ReadJsonFile(path);
  if (absl::IsNotFound(json.status())) return TokenizerConfig{};
  if (!json.ok()) return json.status();
  absl::Status error;
  const JsonCursor document(*json, path, &error);
  TokenizerConfig config;
  config.add_bos_token = document["add_bos_token"].BoolOr(false);
  const JsonCursor bos = document["bos_token"];
  if (bos.IsObject()) {
    config.bos_token = bos["content"].String();
  } else if (!bos.IsNull()) {
    config.bos_token = bos.String();
  }
  if (!error.ok()) return error;
  return config;
}

}  // namespace sparsekv::tokenizer
