#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace sparsekv {

// Guesses the input of the layer after this one: out[t] = x[t], plus, for tokens with a drift, how
// much that input has lately differed from this one. A sequence's drift, [layers, width], follows
// the differences of consecutive inputs: drift[layer] += rate * (x[t] - previous[t] -
// drift[layer]).
struct ExtrapolateArgs {
  struct Item {
    uint32_t token = 0;
    float* drift = nullptr;  // [layers, width], of the token's sequence
    float rate = 0;          // 0 .. 1
  };
  const float* x = nullptr;  // [tokens, width], inputs of `layer`
  const float* previous =
      nullptr;  // [tokens, width], inputs of the layer before; unused in layer 0
  uint32_t tokens = 0;
  uint32_t width = 0;
  uint32_t layer = 0;  // not the last one
  std::span<const Item> items;
  float* out = nullptr;  // [tokens, width]
};

// q[t, h, channels[h / group][j]] = compact[t, h, j] for j < width; every other channel is 0. What
// a sliced Wq gives, as the full query that rotation and scoring take. A channel that is named
// twice for a KV head has the same value twice.
struct ExpandQueryArgs {
  const float* compact = nullptr;      // [tokens, kv_heads * group, width]
  const uint16_t* channels = nullptr;  // [kv_heads, width], each < head_dim
  uint32_t tokens = 0;
  uint32_t kv_heads = 0;
  uint32_t group = 0;
  uint32_t head_dim = 0;
  uint32_t width = 0;
  float* q = nullptr;  // [tokens, kv_heads * group, head_dim]
};

// out[t] = a[t] . b[t] / (|a[t]| |b[t]|), 0 where a norm is 0. Sums in double.
struct CosineArgs {
  const float* a = nullptr;  // [tokens, width]
  const float* b = nullptr;  // [tokens, width]
  uint32_t tokens = 0;
  uint32_t width = 0;
  float* out = nullptr;  // [tokens]
};

// common[kv_head] = how many values the ascending lists a and b of the KV head share.
struct OverlapArgs {
  struct Item {
    const uint32_t* a = nullptr;  // [kv_heads, a_stride]
    const uint32_t* b = nullptr;  // [kv_heads, b_stride]
    size_t a_stride = 0, b_stride = 0;
    uint32_t a_count = 0, b_count = 0;
    uint32_t* common = nullptr;  // [kv_heads]
  };
  uint32_t kv_heads = 0;
  std::span<const Item> items;
};

}  // namespace sparsekv
