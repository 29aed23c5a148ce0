#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/dtype.h"
#include "kernels/encoding.h"

namespace sparsekv {

// A weight matrix where it lies in the checkpoint, in the checkpoint's type. Vectors have rows = 1.
// `data` is aligned to the element size and outlives every call that names it.
//
// With a coding (encoding.h), `data` is codes and `dtype` the type of integers' scales. Linear,
// Project and GateUp of host backends take such matrices; nothing else does.
struct WeightView {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  uint32_t rows = 0;
  uint32_t cols = 0;
  Coding coding = {};

  bool plain() const { return coding.encoding == Encoding::kPlain; }
};

// What a product of one token reads of the matrix: codes, scales and zero points.
size_t WeightBytes(const WeightView& weight);

// Row `row` as the floats that it means, [cols].
void DecodeRow(const WeightView& weight, uint32_t row, float* out);

// Rows [first, first + rows), where they lie. REQUIRES: CanBeginAt(weight, first).
WeightView RowRange(const WeightView& weight, uint32_t first, uint32_t rows);
// Whether no code or scale of the rows before it is shared with this row.
bool CanBeginAt(const WeightView& weight, uint32_t row);

// out[t, :] = table[ids[t], :].  REQUIRES: every id < table.rows.
struct EmbedArgs {
  std::span<const uint32_t> ids;  // [tokens]
  WeightView table;               // [vocab, hidden]
  float* out = nullptr;           // [tokens, hidden]
};

// out[t, :] = x[t, :] * rsqrt(mean(x[t, :]^2) + epsilon) * weight.  `out` may be `x`.
struct RmsNormArgs {
  const float* x = nullptr;  // [tokens, hidden]
  uint32_t tokens = 0;
  WeightView weight;  // [1, hidden]
  float epsilon = 1e-5f;
  float* out = nullptr;  // [tokens, hidden]
};

// y[t, o] = sum_i x[t, i] * weight[o, i]; with `accumulate` that is added to y. The sum over i runs
// in one fixed order, whatever `tokens`, the thread count or the row's place in the batch are.
struct LinearArgs {
  const float* x = nullptr;  // [tokens, weight.cols]
  uint32_t tokens = 0;
  WeightView weight;   // [outputs, inputs]
  float* y = nullptr;  // [tokens, weight.rows]
  bool accumulate = false;
};

// gate[t, i] = silu(gate[t, i]) * up[t, i], silu(z) = z / (1 + exp(-z)).
struct SwiGluArgs {
  float* gate = nullptr;      // [tokens, width]
  const float* up = nullptr;  // [tokens, width]
  uint32_t tokens = 0;
  uint32_t width = 0;
};

}  // namespace sparsekv
