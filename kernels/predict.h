#pragma once

#include <cstdint>

namespace sparsekv {

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

}  // namespace sparsekv
