#pragma once

#include <cstdint>

#include "kernels/rows.h"

namespace sparsekv {

// How much of dense attention each row holds, for one token and KV head: mass[t] = mean over the
// group's query heads of softmax_t(scale * q . k_t). Sums to 1, in float32. What a selection
// captures is the sum over its rows.
//
// Backends whose memory is the host's only; the rows may lie in the segment.
struct RowMassArgs {
  const float* q = nullptr;  // [group, head_dim], after RoPE
  RowTable rows;
  uint32_t kv_head = 0;
  uint32_t tokens = 0;  // rows present, the token's own included
  uint32_t first = 0;   // < tokens; those before it are not there: FirstInWindow
  uint32_t group = 0;
  uint32_t head_dim = 0;  // 8 .. kMaxHeadDim, a multiple of 8
  float scale = 1.0f;
  float* mass = nullptr;  // [tokens], written for first <= t < tokens
};

}  // namespace sparsekv
