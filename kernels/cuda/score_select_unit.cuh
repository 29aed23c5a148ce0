#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/score_select_row.cuh"

// What a warp scores at a time, and what becomes of the heads' scores of a token.
namespace sparsekv::cuda::fused {

// Query heads that share a label in registers.
inline constexpr uint32_t kMostHeads = 8;

template <uint32_t kTokens>
struct Unit {
  static constexpr uint32_t kUnitTokens = kWarpThreads * kTokens;
  static constexpr uint32_t kPageLanes = kBlockTokens / kTokens;
  static constexpr uint32_t kPages = kUnitTokens / kBlockTokens;
  static constexpr uint32_t kOfCut = kCutTokens / kUnitTokens;
  static_assert(kOfCut * kUnitTokens == kCutTokens);

  // The lane's page among the unit's.
  __device__ static const std::byte* Page(const std::byte* const* pages) {
    return pages[LaneId() / kPageLanes];
  }
  // Where the lane's first token lies in the unit.
  __device__ static uint32_t OfLane(uint32_t stride) {
    return LaneId() * (stride == 1 ? kTokens : 1);
  }
};

// The larger; NaN where b is, and only there.
__device__ inline float MaxOf(float b, float a) {
  float larger = fmaxf(b, a);
  asm("max.NaN.f32 %0, %1, %0;" : "+f"(larger) : "f"(b));
  return larger;
}

// The scores of a lane's tokens, pooled over the heads so far.
template <uint32_t kTokens>
struct Pooled {
  float scores[kTokens];

  template <uint32_t kHeads>
  __device__ void Add(const Job& job, uint32_t first_head, const float (&sums)[kHeads][kTokens]) {
    if (job.pooling == Pooling::kMaxNormalised) {
#pragma unroll
      for (uint32_t t = 0; t < kTokens; ++t) {
        // Heads beyond the group are its first (GatherQueries).
        float of_others = sums[kHeads - 1][t];
#pragma unroll
        for (uint32_t h = 1; h + 1 < kHeads; ++h) of_others = fmaxf(of_others, sums[h][t]);
        if (first_head == 0) {
          scores[t] = kHeads == 1 ? sums[0][t] : MaxOf(sums[0][t], of_others);
        } else {
          scores[t] = MaxOf(scores[t], fmaxf(sums[0][t], of_others));
        }
      }
      return;
    }
#pragma unroll
    for (uint32_t h = 0; h < kHeads; ++h) {
      if (first_head + h >= job.group) continue;
#pragma unroll
      for (uint32_t t = 0; t < kTokens; ++t) {
        scores[t] = first_head + h == 0 ? sums[h][t] : __fadd_rn(scores[t], sums[h][t]);
      }
    }
  }
};

}  // namespace sparsekv::cuda::fused
