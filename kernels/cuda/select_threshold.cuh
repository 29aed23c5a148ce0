#pragma once

#include <cooperative_groups.h>
#include <cuda_pipeline_primitives.h>

#include <cstddef>
#include <cstdint>

#include "base/limits.h"
#include "kernels/cuda/cta.cuh"
#include "kernels/select.h"

// A row of scores, the CTAs that share it, and the search for the last score that is selected.
namespace sparsekv::cuda::selection {

inline constexpr uint32_t kClusterCtas = 8;
inline constexpr uint32_t kClusterThreads = 512;
// CTAs of a multiprocessor: what its shared memory has room for.
inline constexpr uint32_t kClusterCtasPerMultiprocessor = 3;
inline constexpr uint32_t kLoneThreads = 1024;

inline constexpr uint32_t kVector = 4;  // scores that are loaded together
inline constexpr uint32_t kBinBits = 11;
inline constexpr uint32_t kBins = 1u << kBinBits;
inline constexpr uint32_t kGroupBins = kWarpThreads;  // bins that a warp sums
inline constexpr uint32_t kGroups = kBins / kGroupBins;
inline constexpr uint32_t kTileWords = 1024;  // of selection bits in shared memory
inline constexpr uint32_t kWordBits = 32;
// 8 CTAs: a context of 130K tokens and some. Three CTAs of this size fit into a multiprocessor.
inline constexpr uint32_t kCachedVectors = 4160;
static_assert(kCachedVectors * kVector <= kTileWords * kWordBits);
static_assert(kGroups == 2 * kWarpThreads);

inline constexpr uint32_t kNoKey = 0;   // of no score: ranks below all of them
inline constexpr uint32_t kNanKey = 1;  // below that of minus infinity

template <uint32_t kCtas>
struct Shared {
  uint4 keys[kCachedVectors];
  union {
    uint32_t histogram[kBins];
    struct {
      uint32_t above[kTileWords];  // a bit per key: it is higher than the last selected one,
      uint32_t equal[kTileWords];  // it is that one
    } bits;
  };
  uint32_t sums[kBins / kCtas];  // of the team's histograms, this CTA's share of the bins
  uint32_t group_sums[kGroups];  // of all bins
  uint64_t counts[kCtas];        // of the team's parts
  uint64_t warp_totals[kWarpThreads];
};
static_assert(kClusterCtasPerMultiprocessor * (sizeof(Shared<kClusterCtas>) + 1024) <= 228 << 10);
static_assert(sizeof(Shared<1>) <= 99 << 10);

// The CTAs that share a row, and their view of each other's shared memory.
template <uint32_t kCtas>
struct Team {
  static constexpr uint32_t kSize = kCtas;
  static constexpr uint32_t kThreads = kCtas == 1 ? kLoneThreads : kClusterThreads;
  static constexpr uint32_t kWarps = kThreads / kWarpThreads;
  static constexpr uint32_t kOwnGroups = kGroups / kCtas;

  __device__ static uint32_t Rank() { return blockIdx.x % kCtas; }
  __device__ static uint32_t Row() { return blockIdx.x / kCtas; }
  // A barrier of all threads of the team; what was written before is seen after it.
  __device__ static void Sync() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    if constexpr (kCtas > 1) return cooperative_groups::this_cluster().sync();
#endif
    __syncthreads();
  }
  template <typename T>
  __device__ static T* Of(T* shared, uint32_t rank) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    if constexpr (kCtas > 1) {
      return cooperative_groups::this_cluster().map_shared_rank(shared, rank);
    }
#endif
    return shared;
  }
};

// The tokens of a row that compete: those between the two parts of the always-set. Counted from
// `base`, which is aligned for vectors; up to kVector - 1 scores before and after them are loaded
// with them, which belong to the always-set, hence to the row.
static_assert(kSinkTokens >= kVector - 1 && kRecentTokens >= kVector - 1);
struct Row {
  const uint4* base;
  uint32_t skip;     // scores at base that do not compete
  uint32_t end;      // of those that do, from base
  uint32_t first;    // vector of this CTA's part
  uint32_t vectors;  // of this CTA's part

  // The token at base.
  __device__ uint32_t FirstToken() const { return kSinkTokens - skip; }
};

template <typename Team>
__device__ Row CutRow(const float* scores, uint32_t tokens) {
  const float* competing = scores + kSinkTokens;
  Row row;
  row.skip =
      static_cast<uint32_t>(reinterpret_cast<uintptr_t>(competing) / sizeof(float) % kVector);
  row.base = reinterpret_cast<const uint4*>(competing - row.skip);
  row.end = row.skip + tokens - AlwaysSetSize(tokens);
  const uint32_t vectors = (row.end + kVector - 1) / kVector;
  // Parts end at whole words of bits.
  constexpr uint32_t kWordVectors = kWordBits / kVector;
  const uint32_t words = (vectors + kWordVectors - 1) / kWordVectors;
  const uint32_t part = (words + Team::kSize - 1) / Team::kSize * kWordVectors;
  row.first = min(Team::Rank() * part, vectors);
  row.vectors = min(part, vectors - row.first);
  return row;
}

// Larger score, larger key; -0 and +0 the same key.
__device__ inline uint32_t KeyOfNumber(float score) {
  const uint32_t bits = __float_as_uint(__fadd_rn(score, 0.0f));  // -0 + 0 = +0
  const auto negative = static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31);
  return bits ^ (negative | 0x80000000u);
}
__device__ inline uint32_t KeyOf(uint32_t score_bits) {
  const float score = __uint_as_float(score_bits);
  return score != score ? kNanKey : KeyOfNumber(score);
}

// Of vector `at` from the row's base, whose scores are given by their bits.
__device__ inline uint4 KeysOf(const Row& row, uint32_t at, uint4 scores) {
  uint4 keys = {KeyOf(scores.x), KeyOf(scores.y), KeyOf(scores.z), KeyOf(scores.w)};
  const uint32_t i = at * kVector;
  if (i < row.skip || i + kVector > row.end) {
    const auto competes = [&](uint32_t token) { return token >= row.skip && token < row.end; };
    if (!competes(i)) keys.x = kNoKey;
    if (!competes(i + 1)) keys.y = kNoKey;
    if (!competes(i + 2)) keys.z = kNoKey;
    if (!competes(i + 3)) keys.w = kNoKey;
  }
  return keys;
}

__device__ inline uint4 LoadKeys(const Row& row, uint32_t at) {
  return KeysOf(row, at, __ldcg(row.base + at));
}

// Begins to bring the scores that are kept; CountAll waits for them.
template <typename Team>
__device__ void StartCopies(const Row& row, Shared<Team::kSize>& shared) {
  const uint32_t cached = min(row.vectors, kCachedVectors);
  for (uint32_t i = threadIdx.x; i < cached; i += Team::kThreads) {
    __pipeline_memcpy_async(&shared.keys[i], row.base + row.first + i, sizeof(uint4));
  }
  __pipeline_commit();
}

// The first round: all keys, by their upper bits. A thread makes keys of the scores that it copied.
template <typename Team>
__device__ void CountAll(const Row& row, Shared<Team::kSize>& shared) {
  constexpr uint32_t kShift = 32 - kBinBits;
  const auto count = [&](uint4 keys) {
    atomicAdd(&shared.histogram[keys.x >> kShift], 1u);
    atomicAdd(&shared.histogram[keys.y >> kShift], 1u);
    atomicAdd(&shared.histogram[keys.z >> kShift], 1u);
    atomicAdd(&shared.histogram[keys.w >> kShift], 1u);
  };
  const uint32_t cached = min(row.vectors, kCachedVectors);
  __pipeline_wait_prior(0);
#pragma unroll 2
  for (uint32_t i = threadIdx.x; i < cached; i += Team::kThreads) {
    const uint4 keys = KeysOf(row, row.first + i, shared.keys[i]);
    shared.keys[i] = keys;
    count(keys);
  }
#pragma unroll 4
  for (uint32_t i = kCachedVectors + threadIdx.x; i < row.vectors; i += Team::kThreads) {
    count(LoadKeys(row, row.first + i));
  }
}

// A later round: the keys [low, low + width), by the bits from `shift` up.
template <typename Team>
__device__ void CountInside(const Row& row, uint32_t low, uint32_t width, uint32_t shift,
                            Shared<Team::kSize>& shared) {
  const auto count = [&](uint32_t key) {
    if (key - low < width) atomicAdd(&shared.histogram[(key - low) >> shift], 1u);
  };
#pragma unroll 2
  for (uint32_t i = threadIdx.x; i < row.vectors; i += Team::kThreads) {
    const uint4 keys = i < kCachedVectors ? shared.keys[i] : LoadKeys(row, row.first + i);
    count(keys.x);
    count(keys.y);
    count(keys.z);
    count(keys.w);
  }
}

template <typename Team>
__device__ void ClearHistogram(Shared<Team::kSize>& shared) {
  for (uint32_t i = threadIdx.x; i < kBins; i += Team::kThreads) shared.histogram[i] = 0;
  __syncthreads();
}

// Sums this CTA's share of the bins over the team, and tells all CTAs the groups' sums.
template <typename Team>
__device__ void SumHistograms(Shared<Team::kSize>& shared) {
  for (uint32_t group = WarpId(); group < Team::kOwnGroups; group += Team::kWarps) {
    const uint32_t of_all = Team::Rank() * Team::kOwnGroups + group;
    uint32_t sum = 0;
#pragma unroll
    for (uint32_t rank = 0; rank < Team::kSize; ++rank) {
      sum += Team::Of(shared.histogram, rank)[of_all * kGroupBins + LaneId()];
    }
    shared.sums[group * kGroupBins + LaneId()] = sum;
    const uint32_t of_group = __reduce_add_sync(kWholeWarp, sum);
    if (LaneId() < Team::kSize) Team::Of(shared.group_sums, LaneId())[of_all] = of_group;
  }
}

// The bin of the key of rank `rank` (from 1) among all keys, the highest first.
struct Bin {
  uint32_t index;
  uint32_t rank;  // in the bin
  uint32_t size;
};

// Among the lanes' bins.
__device__ inline Bin FindInWarp(uint32_t size, uint32_t rank) {
  uint32_t sum = size;  // of this bin and those above
#pragma unroll
  for (uint32_t step = 1; step < kWarpThreads; step *= 2) {
    const uint32_t other = __shfl_down_sync(kWholeWarp, sum, step);
    if (LaneId() + step < kWarpThreads) sum += other;
  }
  const uint32_t index = 31 - __clz(__ballot_sync(kWholeWarp, sum >= rank));
  return {index, rank - __shfl_sync(kWholeWarp, sum - size, index),
          __shfl_sync(kWholeWarp, size, index)};
}

template <typename Team>
__device__ Bin FindBin(Shared<Team::kSize>& shared, uint32_t rank) {
  const uint32_t lower = shared.group_sums[2 * LaneId()];
  const uint32_t upper = shared.group_sums[2 * LaneId() + 1];
  const Bin pair = FindInWarp(lower + upper, rank);
  const uint32_t of_upper = __shfl_sync(kWholeWarp, upper, pair.index);
  const bool in_upper = pair.rank <= of_upper;
  const uint32_t group = 2 * pair.index + (in_upper ? 1 : 0);
  const uint32_t* sums = Team::Of(shared.sums, group / Team::kOwnGroups);
  const Bin bin = FindInWarp(sums[group % Team::kOwnGroups * kGroupBins + LaneId()],
                             in_upper ? pair.rank : pair.rank - of_upper);
  return {group * kGroupBins + bin.index, bin.rank, bin.size};
}

// Selected are the keys from `from`, and the first `equals` of those that are one lower.
struct Threshold {
  uint32_t from;
  uint32_t equals;
};

// Of the `want` highest keys, 0 < want < keys. The same in all threads of the team.
template <typename Team>
__device__ Threshold FindThreshold(const Row& row, uint32_t want, Shared<Team::kSize>& shared) {
  StartCopies<Team>(row, shared);
  ClearHistogram<Team>(shared);
  CountAll<Team>(row, shared);
  uint32_t low = 0;
  uint32_t shift = 32 - kBinBits;
  while (true) {
    Team::Sync();
    SumHistograms<Team>(shared);
    Team::Sync();
    const Bin bin = FindBin<Team>(shared, want);
    low += bin.index << shift;
    want = bin.rank;
    if (want == bin.size) return {low, 0};
    if (shift == 0) return {low + 1, want};
    const uint32_t width = 1u << shift;
    shift = shift > kBinBits ? shift - kBinBits : 0;
    ClearHistogram<Team>(shared);
    CountInside<Team>(row, low, width, shift, shared);
  }
}

}  // namespace sparsekv::cuda::selection
