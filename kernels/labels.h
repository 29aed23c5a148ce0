#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/limits.h"
#include "kernels/label_codes.h"
#include "kernels/rows.h"

namespace sparsekv {

// A label page holds the labels of kBlockTokens tokens of one sequence, all layers:
// [layer][kv_head], and of a head
//   kBf16: [channel][token] in bfloat16;
//   codes (label_codes.h): [token] steps, [token] least values in float16, then
//   [CodeWords][token] words of 32 bits.
// Tokens are innermost, so that scoring runs over contiguous tokens whatever the number of
// channels; every array of them begins at a multiple of 128 bytes.
struct LabelLayout {
  uint32_t layers = 0;
  uint32_t kv_heads = 0;
  uint32_t channels = 0;  // r, label channels per KV head
  LabelFormat format = LabelFormat::kBf16;

  bool coded() const { return format != LabelFormat::kBf16; }
  uint32_t words() const { return coded() ? CodeWords(format, channels) : 0; }
  size_t head_stride() const { return LabelBytes(format, channels) * kBlockTokens; }
  size_t layer_stride() const { return head_stride() * kv_heads; }
  size_t page_bytes() const { return layer_stride() * layers; }
};

// The labels of one sequence in one layer.
struct LabelTable {
  std::byte* const* pages = nullptr;  // [ceil(tokens / kBlockTokens)], starts of whole pages
  const LabelLayout* layout = nullptr;
  uint32_t layer = 0;

  // The labels of a page's tokens, as the layout says.
  std::byte* Head(uint32_t kv_head, uint32_t page) const {
    return pages[page] + layer * layout->layer_stride() + kv_head * layout->head_stride();
  }
};

// Stores the values of a label, or reads them back: of the page's token `token` < kBlockTokens, in
// the memory of its head (LabelTable::Head), in the layout's format.
void StoreLabel(const LabelLayout& layout, std::byte* head, uint32_t token,
                std::span<const float> values);
void LoadLabel(const LabelLayout& layout, const std::byte* head, uint32_t token,
               std::span<float> values);

// Writes the labels of the step's tokens: of the values row_dtype(k[channels[c]]), so that the
// label is a function of the stored row and can be made again from it. The same bits on every
// backend.
struct AppendLabelsArgs {
  struct Item {
    StepSpan span;
    LabelTable labels;
  };
  const float* k = nullptr;  // [tokens, kv_heads, head_dim], after RoPE
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;
  DType row_dtype = DType::kF32;
  const uint16_t* channels = nullptr;  // [kv_heads, layout->channels], of this layer
  std::span<const Item> items;
};

// How the label scores s_h(t) of the G query heads of a KV head become one score.
enum class Pooling : uint8_t {
  kMaxNormalised = 0,  // max over h of s_h(t) / |q_h on the label channels|; 0 where the norm is 0
  kSum = 1,            // sum over h of s_h(t)
  kSoftmaxMass = 2,    // sum over h of softmax over t of s_h(t) / sqrt(head_dim)
};

// scores[kv_head][t] for the tokens first .. tokens-1 of each item, from one query token per item,
// pooled over h in order. q on the channels is scaled for the pooling (kMaxNormalised divides it by
// its norm, kSoftmaxMass by sqrt(head_dim)) and rounded to 16 bits (LabelQuery).
//   kBf16: s_h(t) = sum_c q[h, channels[c]] * label[t, c] in float32, channels in order. A product
//   is exact (unless it is below 2^-126), so it is the same whether an addition is fused with it or
//   not. Codes: q is coded too; s_h(t) is their CodedScore.
// So kMaxNormalised and kSum give the same bits on every backend, and with them the same selection.
struct ScoreLabelsArgs {
  struct Item {
    uint32_t query = 0;   // the step's token whose q asks
    uint32_t tokens = 0;  // labels present, the query's own included
    LabelTable labels;
    float* scores = nullptr;  // [kv_heads, score_stride], written for first <= t < tokens
    uint32_t first = 0;       // < tokens; those before it are not there: FirstInWindow
  };
  const float* q = nullptr;  // [step tokens, kv_heads * group, head_dim], after RoPE
  uint32_t kv_heads = 0;
  uint32_t group = 0;  // query heads per KV head
  uint32_t head_dim = 0;
  const uint16_t* channels = nullptr;  // [kv_heads, layout->channels]
  Pooling pooling = Pooling::kMaxNormalised;
  size_t score_stride = 0;
  std::span<const Item> items;
};

}  // namespace sparsekv
