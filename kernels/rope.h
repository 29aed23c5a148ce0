#pragma once

#include <cstdint>
#include <span>

namespace sparsekv {

// Rotary position embedding in the half-split layout of Hugging Face checkpoints, in place: the
// pair (c, c + head_dim/2) of every head turns by the angle float(position) * inverse_frequency[c],
// a float32 product as the checkpoints were trained with. Cosine and sine are taken of that float.
struct RopeArgs {
  float* x = nullptr;                        // [tokens, heads, head_dim]
  std::span<const uint32_t> positions;       // [tokens]
  std::span<const float> inverse_frequency;  // [head_dim / 2]
  uint32_t heads = 0;
  uint32_t head_dim = 0;  // even, 2..kMaxHeadDim
};

}  // namespace sparsekv
