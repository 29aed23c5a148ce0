#include "kernels/labels.h"

#include <cstring>

#include "base/check.h"
#include "kernels/half.h"

namespace sparsekv {
namespace {

constexpr size_t kHalves = kBlockTokens * sizeof(uint16_t);  // bytes of a page's steps

size_t WordAt(uint32_t word, uint32_t token) {
  return 2 * kHalves + (size_t{word} * kBlockTokens + token) * sizeof(uint32_t);
}

}  // namespace

void StoreLabel(const LabelLayout& layout, std::byte* head, uint32_t token,
                std::span<const float> values) {
  CHECK_EQ(values.size(), layout.channels);
  if (!layout.coded()) {
    for (size_t c = 0; c < values.size(); ++c) {
      StoreValue(head, c * kBlockTokens + token, DType::kBF16, values[c]);
    }
    return;
  }
  const CodedLabel label = CodeLabel(layout.format, values);
  std::memcpy(head + token * 2, &label.step, 2);
  std::memcpy(head + kHalves + token * 2, &label.least, 2);
  for (uint32_t word = 0; word < layout.words(); ++word) {
    std::memcpy(head + WordAt(word, token), &label.words[word], 4);
  }
}

void LoadLabel(const LabelLayout& layout, const std::byte* head, uint32_t token,
               std::span<float> values) {
  CHECK_EQ(values.size(), layout.channels);
  if (!layout.coded()) {
    for (size_t c = 0; c < values.size(); ++c) {
      values[c] = LoadValue(head, c * kBlockTokens + token, DType::kBF16);
    }
    return;
  }
  const float step = LoadValue(head, token, DType::kF16);
  const float least = LoadValue(head, kBlockTokens + token, DType::kF16);
  const uint32_t bits = CodeBits(layout.format), in_word = 32 / bits;
  for (uint32_t c = 0; c < layout.channels; ++c) {
    uint32_t word;
    std::memcpy(&word, head + WordAt(c / in_word, token), 4);
    const uint32_t code = word >> (c % in_word * bits) & ((1u << bits) - 1);
    values[c] = static_cast<float>(code) * step + least;
  }
}

}  // namespace sparsekv
