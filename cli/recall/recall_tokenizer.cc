#include "cli/recall/recall_tokenizer.h"

#include <nlohmann/json.hpp>

#include "base/check.h"
#include "cli/recall/recall_codes.h"

namespace sparsekv {
namespace {

constexpr uint32_t kFirstCharacter = 0x4E00;  // CJK unified ideographs: no case, no composition
static_assert(kFirstCharacter + kRecallVocab <= 0x9FFF);

}  // namespace

std::string RecallTokenText(uint32_t id) {
  CHECK_LT(id, kRecallVocab);
  const uint32_t character = kFirstCharacter + id;
  return {static_cast<char>(0xE0 | (character >> 12)),
          static_cast<char>(0x80 | ((character >> 6) & 0x3F)),
          static_cast<char>(0x80 | (character & 0x3F))};
}

std::string RecallText(std::span<const uint32_t> ids) {
  std::string text;
  for (uint32_t id : ids) text += RecallTokenText(id);
  return text;
}

std::string RecallTokenizerJson() {
  nlohmann::ordered_json vocab = nlohmann::ordered_json::object();
  for (uint32_t id = 0; id < kRecallVocab; ++id) {
    vocab.get_ref<nlohmann::ordered_json::object_t&>().emplace_back(RecallTokenText(id), id);
  }
  const nlohmann::ordered_json tokenizer = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", nlohmann::ordered_json::array()},
      {"normalizer", nullptr},
      {"pre_tokenizer", nullptr},
      {"post_processor", nullptr},
      {"decoder", {{"type", "Fuse"}}},  // without one, decoders put spaces between tokens
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"ignore_merges", false},
        {"vocab", vocab},
        {"merges", nlohmann::ordered_json::array()}}},
  };
  return tokenizer.dump() + "\n";
}

}  // namespace sparsekv
