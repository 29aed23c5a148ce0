#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/score_select_find.cuh"

// What a CTA keeps of the tokens that it has scored. Up to kMostKeys: all of them. Of a part of
// more, the first kCandidates; then those go that so many others are ahead of as the row selects,
// and from then on only what is higher than the last of these is kept: a later token loses against
// an earlier one of its key. The room fills up again after ever more tokens, for most rows; where
// scores rise all along, after as many as there is room for.
namespace sparsekv::cuda::fused {

using selection::kNoKey;

// The lowest score that may be kept yet, and its key.
struct Bound {
  uint32_t key = kNoKey;  // kNoKey: every one is kept
  float score = 0;        // minus infinity where the key is below those of numbers
};

__device__ inline Bound BoundOf(uint32_t key) {
  const uint32_t bits = key >> 31 ? key ^ 0x80000000u : ~key;
  return {key, key < selection::KeyOfNumber(-INFINITY) ? -INFINITY : __uint_as_float(bits)};
}

// Of a lane's scores, of tokens first, first + kStride and so on: all of them, and counts their
// keys in the first histogram. What does not compete has kNoKey.
template <uint32_t kStride, uint32_t kTokens>
__device__ void KeepAll(const Part& part, uint32_t first, const float (&scores)[kTokens],
                        Shared& shared) {
  uint32_t keys[kTokens];
#pragma unroll
  for (uint32_t t = 0; t < kTokens; ++t) keys[t] = selection::KeyOf(__float_as_uint(scores[t]));
  if (first < kCutTokens || first + kCutTokens >= part.tokens) {
#pragma unroll
    for (uint32_t t = 0; t < kTokens; ++t) {
      keys[t] = Competes(part, first + t * kStride) ? keys[t] : kNoKey;
    }
  }
  if constexpr (kStride != 1) {
#pragma unroll
    for (uint32_t t = 0; t < kTokens; ++t) shared.keys[first + t * kStride] = keys[t];
  } else if constexpr (kTokens == 4) {
    reinterpret_cast<uint4*>(shared.keys)[first / 4] = {keys[0], keys[1], keys[2], keys[3]};
  } else {
    static_assert(kTokens == 2);
    reinterpret_cast<uint2*>(shared.keys)[first / 2] = {keys[0], keys[1]};
  }
#pragma unroll
  for (uint32_t t = 0; t < kTokens; ++t) {
    atomicAdd(&shared.histograms[0][keys[t] >> (32 - kBinBits)], 1u);
  }
}

// Or those from the bound on: of most warps some token, of few lanes.
template <uint32_t kStride, uint32_t kTokens>
__device__ void KeepHigh(const Part& part, uint32_t first, const float (&scores)[kTokens],
                         Bound bound, Shared& shared) {
  uint32_t high = 0;  // a bit each
#pragma unroll
  for (uint32_t t = 0; t < kTokens; ++t) high |= scores[t] >= bound.score ? 1u << t : 0;
  if (bound.key <= selection::kNanKey) {
#pragma unroll
    for (uint32_t t = 0; t < kTokens; ++t) high |= scores[t] != scores[t] ? 1u << t : 0;
  }
  if (first + kCutTokens >= part.tokens) {  // the part's last ones; its first are all kept
#pragma unroll
    for (uint32_t t = 0; t < kTokens; ++t) {
      if (!Competes(part, first + t * kStride)) high &= ~(1u << t);
    }
  }
  if (high == 0) return;
  uint32_t at = atomicAdd(&shared.candidates, __popc(high));
#pragma unroll
  for (uint32_t t = 0; t < kTokens; ++t) {
    if ((high >> t & 1) == 0) continue;
    shared.keys[at] = selection::KeyOf(__float_as_uint(scores[t]));
    shared.tokens()[at++] = static_cast<uint16_t>(first + t * kStride);
  }
}

// Moves the candidates that reach the place to the front, in any order, and sets shared.candidates.
// Ends with a barrier.
__device__ inline void MoveToFront(const Part& part, Place place, Candidates candidates,
                                   Shared& shared) {
  if (threadIdx.x == 0) shared.candidates = 0;
#pragma unroll 1
  for (uint32_t tile = 0; tile < candidates.count; tile += 4 * kThreads) {
    const uint32_t first = tile + 4 * threadIdx.x;
    uint32_t keys[4] = {}, tokens[4] = {};
    if (first < candidates.count) {
      const uint4 four = reinterpret_cast<const uint4*>(shared.keys)[first / 4];
      keys[0] = four.x, keys[1] = four.y, keys[2] = four.z, keys[3] = four.w;
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) tokens[i] = candidates.Token(shared, first + i);
    }
    uint32_t kept = 0;  // a bit each
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const bool keeps = first + i < candidates.count && Reaches(part, keys[i], tokens[i], place);
      kept |= keeps ? 1u << i : 0;
    }
    const uint32_t sum = WarpRunningSum(static_cast<uint32_t>(__popc(kept)));
    __syncthreads();  // the tile has been read, and what is written lies before its end
    uint32_t at = 0;
    if (LaneId() == kWarpThreads - 1) at = atomicAdd(&shared.candidates, sum);
    at = __shfl_sync(kWholeWarp, at, kWarpThreads - 1) + sum - __popc(kept);
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      if ((kept >> i & 1) == 0) continue;
      shared.keys[at] = keys[i];
      shared.tokens()[at++] = static_cast<uint16_t>(tokens[i]);
    }
  }
  __syncthreads();
}

// Leaves the part's `want` first candidates, and up to a quarter of the other room. Sets
// shared.candidates and returns what later tokens must reach. By the whole CTA, ends with a
// barrier.
__device__ inline Bound LeaveFirst(const Part& part, Candidates candidates, Shared& shared) {
  const uint32_t most = part.want + (kCandidates - part.want) / 4;
  const Place last = Search(OneCta{}, part, candidates, part.want, most, shared).last;
  MoveToFront(part, last, candidates, shared);
  return BoundOf(last.key + 1);
}

}  // namespace sparsekv::cuda::fused
