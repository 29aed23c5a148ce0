#pragma once

#include <cstdint>

#include "kernels/cuda/score_select_row.cuh"

// The search for the last selected candidate, in a CTA or by the CTAs of a cluster: rounds of 11
// bits, two for most rows of which a bound is known and three for others. A round has one barrier
// of the cluster, after which every CTA reads what it needs from all of them: the sums of groups of
// bins, then the bins of the group in question. So it learns what lies in the parts before its own
// too, hence where in the list it begins to write.
namespace sparsekv::cuda::fused {

using selection::kBinBits;
using selection::kBins;
using selection::kGroupBins;
using selection::kGroups;

// The cluster's barrier in two halves. Between them nothing is ordered but what
// ReleaseShared says.
__device__ inline void ArriveInCluster() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" : : : "memory");
#endif
}
__device__ inline void WaitForCluster() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" : : : "memory");
#endif
}
// What this CTA wrote to its own shared memory is seen by those that wait for its arrival. A
// release of everything, as cluster_group::sync() has, would wait for the device's memory.
__device__ inline void ReleaseShared() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("fence.release.sync_restrict::shared::cta.cluster;" : : : "memory");
#endif
}

// Who searches together. Sync: what each wrote to its shared memory is seen by all; `first`: of a
// search.
struct OneCta {
  static constexpr uint32_t kMost = 1;
  uint32_t size = 1;
  uint32_t rank = 0;

  template <typename T>
  __device__ const T* Of(const T* shared, uint32_t) const {
    return shared;
  }
  __device__ void Sync(bool) const { __syncthreads(); }
};
// REQUIRES: ArriveInCluster was called when the CTA began.
struct Cluster {
  static constexpr uint32_t kMost = kMostCtas;
  uint32_t size;
  uint32_t rank;

  template <typename T>
  __device__ const T* Of(const T* shared, uint32_t of) const {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    return cooperative_groups::this_cluster().map_shared_rank(shared, of);
#else
    return shared;
#endif
  }
  __device__ void Sync(bool first) const {
    if (first) WaitForCluster();  // all have begun
    ReleaseShared();
    ArriveInCluster();
    WaitForCluster();
  }
};

// What a part has. `all`: its first `count` tokens; the first histogram is of all their keys, the
// other one is clear.
struct Candidates {
  uint32_t count;
  bool all;

  __device__ uint32_t Token(const Shared& shared, uint32_t i) const {
    return all ? i : shared.Token(i);
  }
};

// A place in the order in which tokens are selected: by key, the highest first, and of the same
// keys by token, the lowest first.
struct Place {
  uint32_t key = 0;
  uint32_t rest = 0;  // all bits but those of the token in the row: the higher, the sooner
};

__device__ inline uint32_t RestOf(const Part& part, uint32_t token) {
  return ~(part.first + token);
}
// Whether that token of the part is at the place or before it.
__device__ inline bool Reaches(const Part& part, uint32_t key, uint32_t token, Place place) {
  // Without a branch: loads of what comes next do not wait for this.
  return static_cast<bool>(
      static_cast<int>(key > place.key) |
      (static_cast<int>(key == place.key) & static_cast<int>(RestOf(part, token) >= place.rest)));
}

__device__ inline void Clear(uint32_t* histogram) {
  static_assert(kBins == 4 * kThreads);
  reinterpret_cast<uint4*>(histogram)[threadIdx.x] = uint4{};
}

// The keys low.key .. low.key + last, by the bits from `shift` up; what is beyond the last bin is
// in it.
__device__ inline void CountKeys(Place low, uint32_t last, uint32_t shift, uint32_t candidates,
                                 uint32_t* histogram, const Shared& shared) {
  const auto count = [&](uint32_t key) {
    const uint32_t above = key - low.key;
    if (above <= last) atomicAdd(&histogram[min(above >> shift, kBins - 1)], 1u);
  };
  const auto* vectors = reinterpret_cast<const uint4*>(shared.keys);
#pragma unroll 4
  for (uint32_t i = threadIdx.x; i < candidates / 4; i += kThreads) {
    const uint4 keys = vectors[i];
    count(keys.x);
    count(keys.y);
    count(keys.z);
    count(keys.w);
  }
  if (threadIdx.x < candidates % 4) count(shared.keys[candidates - 1 - threadIdx.x]);
}

// Of the key low.key, the tokens low.rest .. low.rest + last.
__device__ inline void CountTokens(const Part& part, Place low, uint32_t last, uint32_t shift,
                                   Candidates candidates, uint32_t* histogram,
                                   const Shared& shared) {
  for (uint32_t i = threadIdx.x; i < candidates.count; i += kThreads) {
    if (shared.keys[i] != low.key) continue;
    const uint32_t above = RestOf(part, candidates.Token(shared, i)) - low.rest;
    if (above <= last) atomicAdd(&histogram[above >> shift], 1u);
  }
}

__device__ inline void SumGroups(Shared& shared, uint32_t buffer) {
#pragma unroll
  for (uint32_t group = WarpId(); group < kGroups; group += kWarps) {
    const uint32_t in_bin = shared.histograms[buffer][group * kGroupBins + LaneId()];
    const uint32_t sum = __reduce_add_sync(kWholeWarp, in_bin);
    if (LaneId() == 0) shared.group_sums[buffer][group] = sum;
  }
}

// f(cta, value) of a value of every CTA, at `from` in its shared memory, and of zeros up to kMost
// of them. Loads do not wait for each other.
template <uint32_t kMost, typename Team, typename T, typename F>
__device__ void ForFewCtas(const Team& team, const T* from, const F& f) {
  T values[kMost];
#pragma unroll
  for (uint32_t cta = 0; cta < kMost; ++cta) {
    values[cta] = T{};
    if (cta < team.size) values[cta] = *team.Of(from, cta);
  }
#pragma unroll
  for (uint32_t cta = 0; cta < kMost; ++cta) f(cta, values[cta]);
}
template <typename Team, typename T, typename F>
__device__ void ForCtas(const Team& team, const T* from, const F& f) {
  constexpr uint32_t kFew = 2;
  if (Team::kMost > kFew && team.size > kFew) {
    ForFewCtas<Team::kMost>(team, from, f);
  } else {
    constexpr uint32_t kAll = Team::kMost < kFew ? Team::kMost : kFew;
    ForFewCtas<kAll>(team, from, f);
  }
}

// The bin of the candidate of rank `rank`, from 1, in all parts; of size 0 where there are fewer.
// By one warp.
template <typename Team>
__device__ Found FindBin(const Team& team, const Shared& shared, uint32_t buffer, uint32_t rank) {
  uint2 groups = {0, 0}, groups_before = {0, 0};  // a pair per lane: in all parts, before this one
  const auto* pairs = reinterpret_cast<const uint2*>(shared.group_sums[buffer]);
  ForCtas(team, pairs + LaneId(), [&](uint32_t cta, uint2 sums) {
    groups.x += sums.x;
    groups.y += sums.y;
    groups_before.x += cta < team.rank ? sums.x : 0;
    groups_before.y += cta < team.rank ? sums.y : 0;
  });
  if (__reduce_add_sync(kWholeWarp, groups.x + groups.y) < rank) return {};
  const selection::Bin pair = selection::FindInWarp(groups.x + groups.y, rank);
  const uint32_t of_upper = __shfl_sync(kWholeWarp, groups.y, pair.index);
  const bool in_upper = pair.rank <= of_upper;
  const uint32_t group = 2 * pair.index + (in_upper ? 1 : 0);
  uint32_t above = LaneId() > pair.index ? groups_before.x + groups_before.y : 0;
  if (LaneId() == pair.index && !in_upper) above = groups_before.y;
  uint32_t size = 0, before = 0;  // a bin per lane
  const uint32_t* histogram = shared.histograms[buffer];
  ForCtas(team, histogram + group * kGroupBins + LaneId(), [&](uint32_t cta, uint32_t in_bin) {
    size += in_bin;
    before += cta < team.rank ? in_bin : 0;
  });
  const selection::Bin bin =
      selection::FindInWarp(size, in_upper ? pair.rank : pair.rank - of_upper);
  if (LaneId() > bin.index) above += before;
  return {group * kGroupBins + bin.index, bin.rank, bin.size, __reduce_add_sync(kWholeWarp, above),
          __shfl_sync(kWholeWarp, before, bin.index)};
}

// The candidates that reach a place.
struct Selected {
  Place last;
  uint32_t before;  // how many of them are in the parts before this one
  bool found;       // there are as many as are wanted
};

// Bits of keys above a bound: two octaves of positive scores, where the last selected one mostly
// is.
inline constexpr uint32_t kNearBits = 24;

// The `want` first of the team's candidates and, as it happens, some that follow: `most` in all;
// not found, in none of the CTAs, where there are fewer. `bound`: a key that all candidates reach,
// the same in all CTAs, or 0. No two places are the same, so that most = want ends too. When it is
// over the other CTAs may still read this one's histograms.
template <typename Team>
__device__ Selected Search(const Team& team, const Part& part, Candidates candidates,
                           uint32_t bound, uint32_t want, uint32_t most, Shared& shared) {
  if (!candidates.all) {
    Clear(shared.histograms[0]);
    Clear(shared.histograms[1]);
  }
  Place low = {bound, 0};
  bool near = bound > 0, of_tokens = false;
  uint32_t before = 0, left = want, bits = near ? kNearBits : 32;  // that are not known yet
  for (uint32_t round = 0;; ++round) {
    const uint32_t buffer = round % 2;
    const uint32_t last = near || bits == 32 ? ~0u : (1u << bits) - 1;
    bits = bits > kBinBits ? bits - kBinBits : 0;
    if (round > 0 || !candidates.all) {
      __syncthreads();  // it is clear, and all know what was found
      uint32_t* histogram = shared.histograms[buffer];
      if (of_tokens) {
        CountTokens(part, low, last, bits, candidates, histogram, shared);
      } else {
        CountKeys(low, last, bits, candidates.count, histogram, shared);
      }
      __syncthreads();
    }
    SumGroups(shared, buffer);
    team.Sync(round == 0);
    if (WarpId() == 0) {
      const Found found = FindBin(team, shared, buffer, left);
      if (LaneId() == 0) shared.found = found;
    }
    // All CTAs have read what the buffer of the next round held.
    if (round > 0) Clear(shared.histograms[1 - buffer]);
    __syncthreads();
    const Found found = shared.found;
    if (found.size == 0) return {};
    if (near && found.bin == kBins - 1) {  // not so near: among all keys
      near = false, low.key = 0, bits = 32;
      continue;
    }
    near = false;
    (of_tokens ? low.rest : low.key) += found.bin << bits;
    before += found.above;
    left = found.rank;
    if (want - left + found.size <= most) return {low, before + found.inside, true};
    if (bits > 0) continue;
    of_tokens = true, bits = 32;  // tokens decide among equal keys
  }
}

}  // namespace sparsekv::cuda::fused
