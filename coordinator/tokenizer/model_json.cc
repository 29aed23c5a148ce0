#include <optional>
#include <string>
#include <string_view>

#include "base/concat.h"
#include "coordinator/tokenizer/tokenizer_spec.h"

namespace sparsekv::tokenizer {
namespace {

constexpr int kMaxSpacesInMerge = 256;

TokenIds ParseVocabulary(const JsonCursor& vocab) {
  TokenIds vocabulary;
  if (!vocab.IsObject()) {
    vocab.Fail(vocab.IsNull() ? "is missing" : "is not an object");
    return vocabulary;
  }
  vocabulary.reserve(vocab.value().size());
  for (const auto& [token, id] : vocab.value().items()) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= kMaxTokenIds) {
      vocab[token].UintBelow(kMaxTokenIds);  // says why
      return vocabulary;
    }
    vocabulary.emplace(token, id.get<uint32_t>());
  }
  return vocabulary;
}

std::optional<Merge> FindMerge(const TokenIds& vocabulary, std::string_view left,
                               std::string_view right) {
  const auto left_id = vocabulary.find(left);
  const auto right_id = vocabulary.find(right);
  if (left_id == vocabulary.end() || right_id == vocabulary.end()) return std::nullopt;
  const auto result = vocabulary.find(Concat(left, right));
  if (result == vocabulary.end()) return std::nullopt;
  return Merge{left_id->second, right_id->second, result->second};
}

// "a b". Tokens may hold spaces themselves, as in Llama 2: then the one space counts at which both
// halves and the whole are tokens.
std::optional<Merge> ParseMergeText(const TokenIds& vocabulary, std::string_view text) {
  std::optional<Merge> merge;
  int spaces = 0;
  for (size_t at = text.find(' '); at != text.npos; at = text.find(' ', at + 1)) {
    if (++spaces > kMaxSpacesInMerge) return std::nullopt;
    std::optional<Merge> here = FindMerge(vocabulary, text.substr(0, at), text.substr(at + 1));
    if (here && merge) return std::nullopt;  // ambiguous
    if (here) merge = here;
  }
  return merge;
}

std::vector<Merge> ParseMerges(const JsonCursor& merges, const TokenIds& vocabulary) {
  std::vector<Merge> parsed;
  const size_t count = merges.Size();
  parsed.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    const nlohmann::json& value = merges.value()[i];
    std::optional<Merge> merge;
    if (value.is_string()) {
      merge = ParseMergeText(vocabulary, value.get_ref<const std::string&>());
    } else if (value.is_array() && value.size() == 2 && value[0].is_string() &&
               value[1].is_string()) {
      merge = FindMerge(vocabulary, value[0].get_ref<const std::string&>(),
                        value[1].get_ref<const std::string&>());
    } else {
      merges[i].Fail("is neither a string nor a pair of strings");
      return parsed;
    }
    if (!merge) {
      merges[i].Fail(
          Concat(value.dump().substr(0, 200), " does not name two tokens that make a third"));
      return parsed;
    }
    parsed.push_back(*merge);
  }
  return parsed;
}

// Options that change the result and that this tokenizer does not have.
void RefuseOtherOptions(const JsonCursor& model) {
  const JsonCursor dropout = model["dropout"];
  if (!dropout.IsNull() && dropout.value() != 0) dropout.Refuse();
  for (const std::string_view affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const JsonCursor field = model[affix];
    if (!field.IsNull() && !field.String().empty()) field.Refuse();
  }
}

}  // namespace

ModelSpec ParseModel(const JsonCursor& model) {
  ModelSpec spec;
  if (!model.IsObject()) {
    model.Fail(model.IsNull() ? "is missing" : "is not an object");
    return spec;
  }
  const JsonCursor type = model["type"];  // early files leave it out
  if (!type.IsNull() && type.String() != "BPE") {
    type.Refuse();
    return spec;
  }
  RefuseOtherOptions(model);
  spec.vocabulary = ParseVocabulary(model["vocab"]);
  if (model.failed()) return spec;
  if (model["merges"].IsNull()) model["merges"].Fail("is missing");
  spec.merges = ParseMerges(model["merges"], spec.vocabulary);
  spec.options.byte_fallback = model["byte_fallback"].BoolOr(false);
  spec.options.ignore_merges = model["ignore_merges"].BoolOr(false);
  spec.options.fuse_unk = model["fuse_unk"].BoolOr(false);
  const JsonCursor unk = model["unk_token"];
  if (!unk.IsNull()) {
    const auto found = spec.vocabulary.find(unk.String());
    if (found == spec.vocabulary.end()) {
      unk.Fail(Concat(Shown(unk.value()), " is not in the vocabulary"));
    } else {
      spec.options.unk = found->second;
    }
  }
  return spec;
}

}  // namespace sparsekv::tokenizer
