#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/cta.cuh"
#include "kernels/cuda/score_lane.cuh"
#include "kernels/cuda/score_part.cuh"
#include "kernels/cuda/tape.h"

// What becomes of the scores of a warp's unit, head by head. What a token's score is depends on no
// other token; of the softmax's sums, on its place in the item alone.
namespace sparsekv::cuda::scoring {

// What a kernel makes of the heads' scores: the maximum or the sum as the job says, or one of the
// softmax's two passes, with a merge between them.
enum class Make : uint8_t { kPooled, kPartials, kMass };

// Query heads that share a label in registers. Pooled, kernels of fewer take groups that small
// only.
inline constexpr uint32_t kMostHeads = 8;

// CTAs of a multiprocessor: registers for 8 x heads sums, 32 of labels and what else there is.
template <uint32_t kHeads>
inline constexpr uint32_t kCtas = kHeads == kMostHeads ? 3 : 4;

// The highest score of the unit's `valid` first tokens and the sum over them, in one order.
__device__ inline Normaliser UnitNormaliser(const float (&sums)[kLaneTokens], uint32_t valid) {
  const uint32_t first = LaneId() * kLaneTokens;
  float highest = -INFINITY;
#pragma unroll
  for (uint32_t t = 0; t < kLaneTokens; ++t) {
    if (first + t < valid) highest = fmaxf(highest, sums[t]);
  }
#pragma unroll
  for (uint32_t step = kWarpThreads / 2; step > 0; step /= 2) {
    highest = fmaxf(highest, __shfl_xor_sync(kWholeWarp, highest, step));
  }
  float sum = 0;
#pragma unroll
  for (uint32_t t = 0; t < kLaneTokens; ++t) {
    if (first + t < valid) sum += expf(sums[t] - highest);
  }
  return {highest, WarpSum(sum)};
}

// What becomes of the unit's scores by query heads [first_head, first_head + kHeads).
template <uint32_t kHeads, Make kMake>
__device__ void Pool(const ScoreJob& job, const Part& part, uint32_t unit, uint32_t first_head,
                     float (&sums)[kHeads][kLaneTokens], float (&pooled)[kLaneTokens]) {
#pragma unroll
  for (uint32_t h = 0; h < kHeads; ++h) {
    const uint32_t g = first_head + h;
    if (g >= job.group) break;
    if constexpr (kMake == Make::kPartials) {
      const Normaliser partial = UnitNormaliser(sums[h], part.tokens - unit * kUnitTokens);
      if (LaneId() == 0) job.partials[uint64_t{part.first_unit + unit} * job.group + g] = partial;
      continue;
    }
    if constexpr (kMake == Make::kMass) {
      const Normaliser all = job.normalisers[uint64_t{part.head} * job.group + g];
#pragma unroll
      for (float& score : sums[h]) score = expf(score - all.highest) * all.sum;
    }
    if (g == 0) {
#pragma unroll
      for (uint32_t t = 0; t < kLaneTokens; ++t) pooled[t] = sums[h][t];
    } else {
      PoolHead(job.pooling, sums[h], pooled);
    }
  }
}

// Stores the unit's scores 32 neighbours at a time: rows may begin at any float.
__device__ inline void StoreUnit(const Part& part, uint32_t unit,
                                 const float (&pooled)[kLaneTokens]) {
  __shared__ float4 stage[kWarps][kUnitTokens / 4];
  float4* warp_stage = stage[WarpId()];
  warp_stage[2 * LaneId()] = make_float4(pooled[0], pooled[1], pooled[2], pooled[3]);
  warp_stage[2 * LaneId() + 1] = make_float4(pooled[4], pooled[5], pooled[6], pooled[7]);
  __syncwarp();
  const uint32_t first = unit * kUnitTokens + LaneId();
  float* to = part.scores + first;
  const float* from = reinterpret_cast<const float*>(warp_stage) + LaneId();
#pragma unroll
  for (uint32_t i = 0; i < kUnitTokens; i += kWarpThreads) {
    if (first + i < part.tokens) to[i] = from[i];
  }
  __syncwarp();
}

// The units' partial normalisers into one per query head.
void NoteMerge(const ScoreJob& job, Tape& tape);

// Notes the kernels that score labels which are codes.
void NoteCodedScores(const ScoreJob& job, Tape& tape);

}  // namespace sparsekv::cuda::scoring
