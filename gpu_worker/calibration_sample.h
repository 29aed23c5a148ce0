#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/select.h"
#include "kernels/window.h"

namespace sparsekv {

// The keys of one (layer, KV head) over one context of a text, as their rows hold them, and some of
// that context's queries, all after rotary embedding. A plain value.
struct HeadSample {
  uint32_t layer = 0, kv_head = 0;
  uint32_t head_dim = 0;
  uint32_t group = 0;   // query heads per KV head
  uint32_t window = 0;  // of the layer, kernels/window.h
  float scale = 1;      // of a score before softmax
  uint32_t tokens = 0;
  std::vector<float> keys;          // [head_dim, tokens]
  std::vector<uint32_t> positions;  // [queries], each < tokens
  std::vector<float> queries;       // [queries, group, head_dim]

  const float* Channel(uint32_t c) const { return keys.data() + size_t{c} * tokens; }
  const float* Query(size_t i, uint32_t h) const {
    return queries.data() + (i * group + h) * head_dim;
  }

  // Tokens [first, present) are what query i sees; of them, [low, high) are not in the always-set.
  // low == high: all of them are.
  struct Range {
    uint32_t first, low, high, present;
  };
  Range Seen(size_t i) const;

  // Dense attention of a query head: attention[t] for first <= t < present.
  void Attention(size_t i, uint32_t h, float* attention) const;
};

}  // namespace sparsekv
