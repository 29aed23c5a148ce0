#pragma once

#include <cstdint>

#include "kernels/labels.h"

// What a lane computes of a few neighbouring tokens: label scores of several query heads. Products
// are exact (labels.h), so a fused multiply-add has the reference's bits.
namespace sparsekv::cuda::scoring {

template <uint32_t kHeads>
struct alignas(kHeads < 4 ? 4 * kHeads : 16) HeadValues {
  float of[kHeads];
};

// Two bf16 of a word as float32.
__device__ inline void Widen(uint32_t word, float& low, float& high) {
  low = __uint_as_float(word << 16);
  high = __uint_as_float(word & 0xFFFF0000u);
}
__device__ inline void Widen(uint32_t labels, float (&wide)[2]) { Widen(labels, wide[0], wide[1]); }
__device__ inline void Widen(uint2 labels, float (&wide)[4]) {
  Widen(labels.x, wide[0], wide[1]);
  Widen(labels.y, wide[2], wide[3]);
}
__device__ inline void Widen(uint4 labels, float (&wide)[8]) {
  Widen(labels.x, wide[0], wide[1]);
  Widen(labels.y, wide[2], wide[3]);
  Widen(labels.z, wide[4], wide[5]);
  Widen(labels.w, wide[6], wide[7]);
}

// Adds one channel to the heads' sums.
template <uint32_t kHeads, uint32_t kTokens>
__device__ void AddChannel(const float (&labels)[kTokens], HeadValues<kHeads> query,
                           float (&sums)[kHeads][kTokens]) {
#pragma unroll
  for (uint32_t h = 0; h < kHeads; ++h) {
#pragma unroll
    for (uint32_t t = 0; t < kTokens; ++t) {
      sums[h][t] = __fmaf_rn(query.of[h], labels[t], sums[h][t]);
    }
  }
}

// pooled = pooled and one query head's scores.
template <uint32_t kTokens>
__device__ void PoolHead(Pooling pooling, const float (&scores)[kTokens],
                         float (&pooled)[kTokens]) {
#pragma unroll
  for (uint32_t t = 0; t < kTokens; ++t) {
    if (pooling == Pooling::kMaxNormalised) {
      pooled[t] = pooled[t] < scores[t] ? scores[t] : pooled[t];  // as std::max, also with NaN
    } else {
      pooled[t] = __fadd_rn(pooled[t], scores[t]);
    }
  }
}

}  // namespace sparsekv::cuda::scoring
