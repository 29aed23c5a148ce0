#include <optional>
#include <utility>

#include "coordinator/tokenizer/tokenizer_spec.h"

namespace sparsekv::tokenizer {
namespace {

constexpr size_t kMaxAffixIds = 16;

// TemplateProcessing for one text: special tokens, the sequence A, special tokens.
Affixes ParseTemplate(const JsonCursor& processor) {
  Affixes affixes;
  std::vector<uint32_t>* ids = &affixes.prefix;
  const JsonCursor parts = processor["single"];
  for (size_t i = 0; i < parts.Size() && !processor.failed(); ++i) {
    if (!parts[i]["Sequence"].IsNull()) {
      const JsonCursor id = parts[i]["Sequence"]["id"];
      if (id.String() != "A" || ids == &affixes.suffix) id.Refuse();
      ids = &affixes.suffix;
      continue;
    }
    const JsonCursor name = parts[i]["SpecialToken"]["id"];
    const JsonCursor named = processor["special_tokens"][name.String()]["ids"];
    if (named.Size() == 0) named.Fail("is missing or empty");
    for (size_t j = 0; j < named.Size() && !processor.failed(); ++j) {
      ids->push_back(named[j].UintBelow(kMaxTokenIds));
      if (ids->size() > kMaxAffixIds) named.Fail("makes the template too long");
    }
  }
  if (ids == &affixes.prefix) parts.Fail("does not contain the sequence A");
  return affixes;
}

// BertProcessing, RobertaProcessing: ["[CLS]", 101]
uint32_t IdOfPair(const JsonCursor& pair) {
  if (pair.Size() == 2) return pair[1].UintBelow(kMaxTokenIds);
  pair.Fail("is not a token and its id");
  return 0;
}

}  // namespace

std::optional<Affixes> ParsePostProcessor(const JsonCursor& processor) {
  if (processor.IsNull()) return std::nullopt;
  const std::string type = processor["type"].String();
  if (type == "TemplateProcessing") return ParseTemplate(processor);
  if (type == "BertProcessing" || type == "RobertaProcessing") {
    return Affixes{{IdOfPair(processor["cls"])}, {IdOfPair(processor["sep"])}};
  }
  if (type == "Sequence") {
    std::optional<Affixes> rule;
    const JsonCursor processors = processor["processors"];
    for (size_t i = 0; i < processors.Size() && !processor.failed(); ++i) {
      std::optional<Affixes> next = ParsePostProcessor(processors[i]);
      if (rule && next) processors[i]["type"].Refuse();  // two rules
      if (next) rule = std::move(next);
    }
    return rule;
  }
  if (type != "ByteLevel") processor["type"].Refuse();  // ByteLevel only moves offsets
  return std::nullopt;
}

}  // namespace sparsekv::tokenizer
