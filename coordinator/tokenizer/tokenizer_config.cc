#include "coordinator/tokenizer/tokenizer_config.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "base/concat.h"
#include "base/json_file.h"
#include "coordinator/tokenizer/json_cursor.h"
#include "coordinator/tokenizer/tokenizer_spec.h"

namespace sparsekv::tokenizer {
namespace {

std::optional<bool> OptionalBool(const JsonCursor& field) {
  if (field.IsNull()) return std::nullopt;
  return field.BoolOr(false);
}

AddedToken FlaggedToken(const JsonCursor& token) {
  return {.content = token["content"].String(),
          .single_word = token["single_word"].BoolOr(false),
          .lstrip = token["lstrip"].BoolOr(false),
          .rstrip = token["rstrip"].BoolOr(false),
          .special = token["special"].BoolOr(false)};
}

void ReadNamedToken(const JsonCursor& field, std::optional<AddedToken>* token) {
  if (field.IsNull() || token->has_value()) return;
  *token = field.IsObject() ? FlaggedToken(field) : AddedToken{.content = field.String()};
  (*token)->special = true;
}

void ReadNamedTokens(const JsonCursor& document, TokenizerConfig* config) {
  ReadNamedToken(document["bos_token"], &config->bos_token);
  ReadNamedToken(document["eos_token"], &config->eos_token);
  ReadNamedToken(document["unk_token"], &config->unk_token);
  ReadNamedToken(document["pad_token"], &config->pad_token);
  const JsonCursor additional = document["additional_special_tokens"];
  for (size_t i = 0; i < additional.Size() && !additional.failed(); ++i) {
    const JsonCursor token = additional[i];
    config->additional_special_tokens.push_back(token.IsObject() ? token["content"].String()
                                                                 : token.String());
  }
}

// {"32000": {"content": ...}}
void ReadAddedTokens(const JsonCursor& tokens, std::vector<AddedToken>* added) {
  if (tokens.IsNull()) return;
  if (!tokens.IsObject()) return tokens.Fail("is not an object");
  for (const auto& [id, unused] : tokens.value().items()) {
    const JsonCursor token = tokens[id];
    AddedToken next = FlaggedToken(token);
    const bool is_number =
        !id.empty() && id.size() < 8 && id.find_first_not_of("0123456789") == std::string::npos;
    if (!is_number || std::stoul(id) >= kMaxTokenIds) {
      return token.Fail(Concat("has a name that is not an integer from 0 to ", kMaxTokenIds - 1));
    }
    next.id = static_cast<uint32_t>(std::stoul(id));
    CheckAddedToken(next, token["content"]);
    added->push_back(std::move(next));
    if (tokens.failed()) return;
  }
  CheckAddedTokens(*added, tokens);
}

}  // namespace

bool TokenizerConfig::IsNamed(std::string_view token) const {
  for (const auto* named : {&bos_token, &eos_token, &unk_token, &pad_token}) {
    if (*named && (*named)->content == token) return true;
  }
  return std::find(additional_special_tokens.begin(), additional_special_tokens.end(), token) !=
         additional_special_tokens.end();
}

absl::StatusOr<TokenizerConfig> ReadTokenizerConfig(const std::string& path) {
  const absl::StatusOr<nlohmann::json> json = ReadJsonFile(path);
  if (absl::IsNotFound(json.status())) return TokenizerConfig{};
  if (!json.ok()) return json.status();
  absl::Status error;
  const JsonCursor document(*json, path, &error);
  TokenizerConfig config;
  config.add_bos_token = OptionalBool(document["add_bos_token"]);
  config.add_eos_token = OptionalBool(document["add_eos_token"]);
  config.legacy = document["legacy"].BoolOr(true);
  config.add_prefix_space = document["add_prefix_space"].BoolOr(true);
  ReadNamedTokens(document, &config);
  ReadAddedTokens(document["added_tokens_decoder"], &config.added_tokens);
  if (!error.ok()) return error;
  return config;
}

absl::Status ReadOlderFiles(const std::string& model_dir, TokenizerConfig* config) {
  absl::Status error;
  const std::string map_path = Concat(model_dir, "/special_tokens_map.json");
  const absl::StatusOr<nlohmann::json> map = ReadJsonFile(map_path);
  if (map.ok()) {
    ReadNamedTokens(JsonCursor(*map, map_path, &error), config);
  } else if (!absl::IsNotFound(map.status())) {
    return map.status();
  }
  const std::string added_path = Concat(model_dir, "/added_tokens.json");
  const absl::StatusOr<nlohmann::json> added = ReadJsonFile(added_path);
  if (added.ok() && config->added_tokens.empty()) {
    const JsonCursor document(*added, added_path, &error);
    if (!document.IsObject()) document.Fail("is not an object");
    for (const auto& [text, id] : document.value().items()) {
      if (!error.ok()) break;
      config->added_tokens.push_back(
          {.id = document[text].UintBelow(kMaxTokenIds), .content = text});
      CheckAddedToken(config->added_tokens.back(), document[text]);
    }
    CheckAddedTokens(config->added_tokens, document);
  } else if (!added.ok() && !absl::IsNotFound(added.status())) {
    return added.status();
  }
  return error;
}

}  // namespace sparsekv::tokenizer
