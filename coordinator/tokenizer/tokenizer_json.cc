#include <utility>

#include "absl/container/flat_hash_map.h"
#include "base/concat.h"
#include "base/json_file.h"
#include "coordinator/tokenizer/tokenizer_spec.h"

namespace sparsekv::tokenizer {
namespace {

constexpr size_t kMaxAddedTokenBytes = 1024;
constexpr size_t kMaxAddedTokens = 200'000;
constexpr size_t kMaxAddedTokenTotal = size_t{8} << 20;  // bytes of them all

// An id may have one token and a token one id; an added token that the vocabulary has too keeps its
// id there.
void CheckIds(const TokenizerSpec& spec, const JsonCursor& document) {
  absl::flat_hash_map<uint32_t, std::string_view> token_of_id;
  for (const auto& [token, id] : spec.model.vocabulary) {
    const auto [other, is_new] = token_of_id.try_emplace(id, token);
    if (!is_new) {
      return document["model"]["vocab"].Fail(
          Concat("gives the id ", id, " to ", Shown(token), " and to ", Shown(other->second)));
    }
  }
  const JsonCursor added = document["added_tokens"];
  absl::flat_hash_map<std::string_view, uint32_t> added_ids;
  for (size_t i = 0; i < spec.added_tokens.size(); ++i) {
    const AddedToken& token = spec.added_tokens[i];
    const auto [other, id_is_new] = token_of_id.try_emplace(token.id, token.content);
    if (!id_is_new && other->second != token.content) {
      return added[i]["id"].Fail(Concat(token.id, " already belongs to ", Shown(other->second)));
    }
    const auto in_vocabulary = spec.model.vocabulary.find(token.content);
    const bool moves =
        in_vocabulary != spec.model.vocabulary.end() && in_vocabulary->second != token.id;
    if (moves || !added_ids.try_emplace(token.content, token.id).second) {
      return added[i]["content"].Fail(Concat(Shown(token.content), " already has an id"));
    }
  }
  if (!spec.affixes) return;
  for (const std::vector<uint32_t>* ids : {&spec.affixes->prefix, &spec.affixes->suffix}) {
    for (const uint32_t id : *ids) {
      if (token_of_id.contains(id)) continue;
      return document["post_processor"].Fail(Concat("names the id ", id, ", which no token has"));
    }
  }
}

}  // namespace

void CheckAddedToken(const AddedToken& token, const JsonCursor& field) {
  if (token.content.empty() || token.content.size() > kMaxAddedTokenBytes) {
    field.Fail(Concat("is not of 1 to ", kMaxAddedTokenBytes, " bytes"));
  }
}

void CheckAddedTokens(const std::vector<AddedToken>& tokens, const JsonCursor& field) {
  size_t bytes = 0;
  for (const AddedToken& token : tokens) bytes += token.content.size();
  if (tokens.size() <= kMaxAddedTokens && bytes <= kMaxAddedTokenTotal) return;
  field.Fail(Concat("has ", tokens.size(), " tokens of ", bytes, " bytes, more than ",
                    kMaxAddedTokens, " or ", kMaxAddedTokenTotal));
}

std::vector<AddedToken> ParseAddedTokens(const JsonCursor& tokens) {
  std::vector<AddedToken> added;
  for (size_t i = 0; i < tokens.Size() && !tokens.failed(); ++i) {
    const JsonCursor token = tokens[i];
    added.push_back({.id = token["id"].UintBelow(kMaxTokenIds),
                     .content = token["content"].String(),
                     .single_word = token["single_word"].BoolOr(false),
                     .lstrip = token["lstrip"].BoolOr(false),
                     .rstrip = token["rstrip"].BoolOr(false),
                     .normalized = token["normalized"].BoolOr(true),
                     .special = token["special"].BoolOr(false)});
    CheckAddedToken(added.back(), token["content"]);
  }
  CheckAddedTokens(added, tokens);
  return added;
}

absl::StatusOr<TokenizerSpec> ReadTokenizerJson(const std::string& path) {
  const absl::StatusOr<nlohmann::json> json = ReadJsonFile(path);
  if (!json.ok()) return json.status();
  absl::Status error;
  const JsonCursor document(*json, path, &error);
  TokenizerSpec spec;
  spec.model = ParseModel(document["model"]);
  spec.added_tokens = ParseAddedTokens(document["added_tokens"]);
  spec.normalizer = ParseNormalizer(document["normalizer"]);
  spec.pre_tokenizer = ParsePreTokenizer(document["pre_tokenizer"]);
  spec.decoder = ParseDecoder(document["decoder"]);
  spec.affixes = ParsePostProcessor(document["post_processor"]);
  if (error.ok()) CheckIds(spec, document);
  if (!error.ok()) return error;
  return spec;
}

}  // namespace sparsekv::tokenizer
