#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "coordinator/tokenizer/normalizer.h"

namespace sparsekv::tokenizer {

// "<0x0A>" becomes the byte 0x0A.
struct ByteFallbackStep {};

// Characters of GPT-2's byte alphabet become bytes; a token with any other character stays.
struct ByteLevelStep {};

// The mark becomes a space or, in the first token of a text, nothing if drop_first is set.
struct MetaspaceDecodeStep {
  std::string mark;
  bool drop_first = false;
};

using DecodeStep = std::variant<ReplaceStep, ByteFallbackStep, ByteLevelStep, MetaspaceDecodeStep>;

// Up to `count` leading repetitions of `text` are taken off the start of a decoded text.
struct LeadingStrip {
  std::string text;
  size_t count = 0;

  // Strips what comes next of a text that arrives in pieces; `count` is what is still to do.
  // REQUIRES: pieces hold whole characters and text is one character (or count is 0).
  void Consume(std::string* piece);
};

struct DecoderSpec {
  std::vector<DecodeStep> steps;  // done to each token by itself
  LeadingStrip strip;             // done to the decoded text
};

// What a vocabulary has at one id.
struct TokenText {
  std::string text;
  bool is_outside_model = false;  // an added token that is no model token: its text is plain text
  bool is_special = false;
};

// Turns ids back into bytes; each token's bytes are worked out once. An id without a token is
// nothing. Immutable, thread-safe.
class Decoder {
 public:
  Decoder() = default;
  Decoder(const DecoderSpec& spec, const std::vector<TokenText>& tokens);

  // The bytes of all ids as a text of its own.
  std::string Decode(std::span<const uint32_t> ids, bool skip_special) const;

  // The bytes of one id, before any strip. first: it is the first token of a text.
  std::string_view TokenBytes(uint32_t id, bool first) const;

  bool IsSpecial(uint32_t id) const { return id < special_.size() && special_[id]; }
  const LeadingStrip& strip() const { return strip_; }
  uint32_t vocab_size() const { return static_cast<uint32_t>(special_.size()); }

 private:
  LeadingStrip strip_;
  std::vector<bool> special_;  // by id, like the others
  std::vector<std::string> bytes_;
  std::vector<std::string> first_bytes_;  // empty when first tokens are like any other
};

}  // namespace sparsekv::tokenizer
