#include <utility>

#include "absl/container/flat_hash_map.h"
#include "base/concat.h"
#include "base/json_file.h"
#include "coordinator/tokenizer/tokenizer_spec.h"

namespace sparsekv::tokenizer {
namespace {

constexpr size_t kMaxAddedTokenBytes = 1024;
constexpr size_t kMaxPrefixIds = 16;

void AppendTemplate(const JsonCursor& processor, std::vector<uint32_t>* prefix) {
  const JsonCursor parts = processor["single"];
  bool after_text = false;
  for (size_t i = 0; i < parts.Size() && !processor.failed(); ++i) {
    if (!parts[i]["Sequence"].IsNull()) {
      const JsonCursor id = parts[i]["Sequence"]["id"];
      if (id.String() != "A" || after_text) id.Refuse();
      after_text = true;
      continue;
    }
    const JsonCursor name = parts[i]["SpecialToken"]["id"];
    if (after_text) return name.Refuse();  // a token after the prompt would end it
    const JsonCursor ids = processor["special_tokens"][name.String()]["ids"];
    if (ids.Size() == 0) return ids.Fail("is missing or empty");
    for (size_t j = 0; j < ids.Size() && !processor.failed(); ++j) {
      prefix->push_back(ids[j].UintBelow(kMaxTokenIds));
      if (prefix->size() > kMaxPrefixIds) return ids.Fail("makes the prefix too long");
    }
  }
  if (!after_text) parts.Fail("does not contain the sequence A");
}

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
  if (!spec.prefix) return;
  for (const uint32_t id : *spec.prefix) {
    if (!token_of_id.contains(id)) {
      return document["post_processor"].Fail(Concat("names the id ", id, ", which no token has"));
    }
  }
}

}  // namespace

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
    const size_t length = added.back().content.size();
    if (length == 0 || length > kMaxAddedTokenBytes) {
      token["content"].Fail(Concat("is not of 1 to ", kMaxAddedTokenBytes, " bytes"));
    }
  }
  return added;
}

std::optional<std::vector<uint32_t>> ParsePrefix(const JsonCursor& post_processor) {
  if (post_processor.IsNull()) return std::nullopt;
  const std::string type = post_processor["type"].String();
  std::vector<uint32_t> prefix;
  if (type == "TemplateProcessing") {
    AppendTemplate(post_processor, &prefix);
    return prefix;
  }
  if (type == "Sequence") {
    std::optional<std::vector<uint32_t>> rule;
    const JsonCursor processors = post_processor["processors"];
    for (size_t i = 0; i < processors.Size() && !post_processor.failed(); ++i) {
      std::optional<std::vector<uint32_t>> next = ParsePrefix(processors[i]);
      if (rule && next) processors[i]["type"].Refuse();  // two rules
      if (next) rule = std::move(next);
    }
    return rule;
  }
  if (type != "ByteLevel") post_processor["type"].Refuse();  // ByteLevel only moves offsets
  return std::nullopt;
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
  spec.prefix = ParsePrefix(document["post_processor"]);
  if (error.ok()) CheckIds(spec, document);
  if (!error.ok()) return error;
  return spec;
}

}  // namespace sparsekv::tokenizer
