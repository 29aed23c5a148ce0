#pragma once

#include <cstdint>
#include <span>

#include "kernels/matrix.h"

namespace sparsekv {

// What a layer does before and after its attention, in pieces that a device can do in one pass over
// the weights. Backends that gain nothing by it compose them of matrix.h's operations; the results
// agree to rounding between backends, and within one backend an input has one result.

// y = weight . RmsNorm(x), for several matrices that share their input.
struct ProjectArgs {
  struct Output {
    WeightView weight;   // [outputs, hidden]
    float* y = nullptr;  // [tokens, outputs]
  };
  const float* x = nullptr;  // [tokens, hidden]
  uint32_t tokens = 0;
  WeightView norm;  // [1, hidden]
  float epsilon = 1e-5f;
  float* normed = nullptr;  // [tokens, hidden], for who composes; then undefined
  std::span<const Output> outputs;
};

// out = silu(gate . n) * (up . n), n = RmsNorm(x).
struct GateUpArgs {
  const float* x = nullptr;  // [tokens, hidden]
  uint32_t tokens = 0;
  WeightView norm;  // [1, hidden]
  float epsilon = 1e-5f;
  WeightView gate, up;      // [width, hidden]
  float* normed = nullptr;  // [tokens, hidden], for who composes; then undefined
  float* spare = nullptr;   // [tokens, width], likewise
  float* out = nullptr;     // [tokens, width]
};

}  // namespace sparsekv
