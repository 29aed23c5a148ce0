#pragma once

#include <cstdint>
#include <span>

#include "kernels/labels.h"
#include "kernels/rope.h"
#include "kernels/rows.h"

namespace sparsekv {

// Rotates a step's queries and keys in place (rope.h), then writes rows (rows.h) and labels
// (labels.h) of the rotated keys: one pass over them on a device.
struct RotateAppendArgs {
  float* q = nullptr;                        // [tokens, heads, head_dim]
  float* k = nullptr;                        // [tokens, kv_heads, head_dim]
  const float* v = nullptr;                  // [tokens, kv_heads, head_dim]
  std::span<const uint32_t> positions;       // [tokens]
  std::span<const float> inverse_frequency;  // [head_dim / 2]
  uint32_t heads = 0;
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;
  DType row_dtype = DType::kF32;
  const uint16_t* channels = nullptr;  // [kv_heads, layout->channels], of this layer
  std::span<const AppendRowsArgs::Item> rows;
  std::span<const AppendLabelsArgs::Item> labels;
};

}  // namespace sparsekv
