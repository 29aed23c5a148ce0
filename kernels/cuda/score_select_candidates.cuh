#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/score_select_find.cuh"

// What a CTA keeps of the tokens that it has scored: all of them in rows whose parts have up to
// kMostKeys, else what reaches a bound. A sample of the row gives the first one
// (score_select_sample.cuh). Where the room is full after all, or there was no bound and the first
// tokens fill it, those go that so many others are ahead of as the row selects, and the last of
// these is the bound from then on.
namespace sparsekv::cuda::fused {

using selection::kNoKey;

// The place that is kept last, and the score that tokens reach which reach the place; NaN where
// scores alone do not say. None: everything is kept.
struct Bound {
  Place place = {kNoKey, 0};
  float score = 0;

  __device__ bool none() const { return place.key == kNoKey; }
};

__device__ inline Bound BoundOf(Place place) {
  const uint32_t bits = place.key >> 31 ? place.key ^ 0x80000000u : ~place.key;
  const bool number = place.key >= selection::KeyOfNumber(-INFINITY);
  return {place, number && place.rest == 0 ? __uint_as_float(bits) : NAN};
}

// Of a lane's scores, of tokens first, first + kStride and so on: all of them, and counts their
// keys in the first histogram. What does not compete has kNoKey.
template <uint32_t kStride, uint32_t kTokens>
__device__ void KeepAll(const Part& part, uint32_t first, const float (&scores)[kTokens],
                        Shared& shared) {
  uint32_t keys[kTokens];
#pragma unroll
  for (uint32_t t = 0; t < kTokens; ++t) keys[t] = selection::KeyOf(__float_as_uint(scores[t]));
  if (AtAnEnd(part, first)) {
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

// Which of a lane's tokens are kept, a bit each.
template <uint32_t kStride, uint32_t kTokens>
__device__ uint32_t Kept(const Part& part, uint32_t first, const float (&scores)[kTokens],
                         const Bound& bound) {
  uint32_t kept = 0;
  if (!AtAnEnd(part, first) && !isnan(bound.score)) {
#pragma unroll
    for (uint32_t t = 0; t < kTokens; ++t) kept |= scores[t] >= bound.score ? 1u << t : 0;
    return kept;
  }
#pragma unroll
  for (uint32_t t = 0; t < kTokens; ++t) {
    const uint32_t token = first + t * kStride;
    const uint32_t key = selection::KeyOf(__float_as_uint(scores[t]));
    const bool keeps = Competes(part, token) && Reaches(part, key, token, bound.place);
    kept |= keeps ? 1u << t : 0;
  }
  return kept;
}

// Or those that the bound keeps: of most warps some token, of few lanes, seldom two of one. So each
// lane gives one at a time. By a whole warp; returns whether there is no room for more than what
// warps add until they know.
template <uint32_t kStride, uint32_t kTokens>
__device__ bool KeepHigh(const Part& part, uint32_t first, const float (&scores)[kTokens],
                         const Bound& bound, Shared& shared) {
  uint32_t kept = Kept<kStride>(part, first, scores, bound);
  uint32_t count = 0;
  while (const uint32_t lanes = __ballot_sync(kWholeWarp, kept != 0)) {
    if (LaneId() == 0) count = atomicAdd(&shared.candidates, __popc(lanes));
    count = __shfl_sync(kWholeWarp, count, 0);
    if (kept != 0) {
      // The lane's first: chosen from the registers, as they have no addresses.
      uint32_t token = first + (kTokens - 1) * kStride;
      float score = scores[kTokens - 1];
#pragma unroll
      for (uint32_t t = kTokens - 1; t-- > 0;) {
        if ((kept >> t & 1) == 0) continue;
        token = first + t * kStride;
        score = scores[t];
      }
      const uint32_t at = count + __popc(lanes & LanesBefore());
      shared.Keep(at, selection::KeyOf(__float_as_uint(score)), token);
    }
    kept &= kept - 1;
    count += __popc(lanes);
  }
  return count > kFull;
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
      shared.Keep(at++, keys[i], tokens[i]);
    }
  }
  __syncthreads();
}

// Leaves the part's `want` first candidates, which are kept by the bound so far, and up to a
// quarter of the other room. Sets shared.candidates and returns what other tokens must reach. By
// the whole CTA, ends with a barrier.
__device__ inline Bound LeaveFirst(const Part& part, Candidates candidates, const Bound& bound,
                                   Shared& shared) {
  const uint32_t most = part.want + (kFull - part.want) / 4;
  const uint32_t low = candidates.all ? 0 : bound.place.key;
  const Place last = Search(OneCta{}, part, candidates, low, part.want, most, shared).last;
  MoveToFront(part, last, candidates, shared);
  return BoundOf(last);
}

}  // namespace sparsekv::cuda::fused
