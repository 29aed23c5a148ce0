#pragma once

#include <cstdint>

#include "kernels/matrix.h"

namespace sparsekv {

// x[t, i] += bias[i], the bias widened to float32.
struct AddBiasArgs {
  float* x = nullptr;  // [tokens, bias.cols]
  uint32_t tokens = 0;
  WeightView bias;  // [1, width]
};

}  // namespace sparsekv
