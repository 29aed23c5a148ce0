#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/row_mass.h"

namespace sparsekv::cpu {

// RowMass in tasks: chunks of rows, counted from position 0.
struct RowMassJob {
  static constexpr uint32_t kChunk = 1024;

  const RowMassArgs* args = nullptr;
  size_t padded = 0;         // head_dim, to whole vectors
  float* q = nullptr;        // [group, padded], scaled
  float* weights = nullptr;  // [group, span]: scores, then their exponentials
  float* highest = nullptr;  // [chunks, group]
  float* total = nullptr;    // [chunks, group]
  float* maximum = nullptr;  // [group]
  float* factor = nullptr;   // [group]

  uint32_t span() const { return args->tokens - args->first; }
  uint32_t first_chunk() const { return args->first / kChunk; }
  uint32_t chunks() const { return (args->tokens + kChunk - 1) / kChunk - first_chunk(); }
  // Rows of a chunk.
  uint32_t Begin(uint32_t chunk) const {
    return std::max(args->first, (first_chunk() + chunk) * kChunk);
  }
  uint32_t End(uint32_t chunk) const {
    return std::min(args->tokens, (first_chunk() + chunk + 1) * kChunk);
  }
};

}  // namespace sparsekv::cpu
