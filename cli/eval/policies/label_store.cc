#include "cli/eval/policies/label_store.h"

#include "cli/eval/policies/scores.h"
#include "kernels/half.h"

namespace sparsekv {

LabelStore::LabelStore(LabelFormat format, uint32_t channels, uint32_t capacity)
    : format_(format), values_(channels, capacity) {}

void LabelStore::Append(std::span<const float> label) {
  if (!coded()) return values_.Append(label.data());
  const CodedLabel stored = CodeLabel(format_, label);
  const uint32_t bits = CodeBits(format_), in_word = 32 / bits;
  std::vector<float> codes;
  for (uint32_t c = 0; c < label.size(); ++c) {
    const uint32_t code = stored.words[c / in_word] >> (c % in_word * bits) & ((1u << bits) - 1);
    codes.push_back(static_cast<float>(code));
  }
  values_.Append(codes.data());
  steps_.push_back(FromF16(stored.step));
  leasts_.push_back(FromF16(stored.least));
}

void LabelStore::Truncate(uint32_t tokens) {
  values_.Truncate(tokens);
  if (steps_.size() > tokens) {
    steps_.resize(tokens);
    leasts_.resize(tokens);
  }
}

void LabelStore::Score(std::span<const float> query, uint32_t tokens, float* scores) const {
  if (!coded()) return ScoreKeys(query.data(), values_, tokens, scores);
  const CodedQuery asked = CodeQuery(query);
  const std::vector<float> codes(asked.codes, asked.codes + query.size());
  // Sums of products of codes are whole numbers below 2^24: exact in float32.
  ScoreKeys(codes.data(), values_, tokens, scores);
  for (uint32_t t = 0; t < tokens; ++t) {
    scores[t] =
        CodedScore(asked.unit, asked.sum, steps_[t], leasts_[t], static_cast<int32_t>(scores[t]));
  }
}

}  // namespace sparsekv
