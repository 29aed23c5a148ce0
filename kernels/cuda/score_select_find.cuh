#pragma once

#include <cstdint>

#include "kernels/cuda/score_select_row.cuh"
#include "kernels/cuda/select_write.cuh"

// The search for the last selected key by the CTAs of a cluster: rounds of 11, 11 and 10 bits, two
// for most rows. A round has one barrier of the cluster, after which every CTA reads what it needs
// from all of them: the sums of groups of bins, then the bins of the group in question. So it
// learns what lies in the parts before its own too, hence where in the list it begins to write.
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

__device__ inline void Clear(uint32_t* histogram) {
  for (uint32_t i = threadIdx.x; i < kBins; i += kThreads) histogram[i] = 0;
}

__device__ inline void SumGroups(Shared& shared, uint32_t buffer) {
#pragma unroll
  for (uint32_t group = WarpId(); group < kGroups; group += kWarps) {
    const uint32_t keys = shared.histograms[buffer][group * kGroupBins + LaneId()];
    const uint32_t sum = __reduce_add_sync(kWholeWarp, keys);
    if (LaneId() == 0) shared.group_sums[buffer][group] = sum;
  }
}

// The bin of the key of rank `rank` in all parts. By one warp.
template <typename Team>
__device__ Found FindBin(const Shared& shared, uint32_t buffer, uint32_t rank) {
  uint2 groups = {0, 0}, groups_before = {0, 0};  // a pair per lane: in all parts, before this one
#pragma unroll
  for (uint32_t cta = 0; cta < Team::kSize; ++cta) {
    const uint32_t* all = Team::Of(shared.group_sums[buffer], cta);
    const uint2 sums = reinterpret_cast<const uint2*>(all)[LaneId()];
    groups.x += sums.x;
    groups.y += sums.y;
    groups_before.x += cta < Team::Rank() ? sums.x : 0;
    groups_before.y += cta < Team::Rank() ? sums.y : 0;
  }
  const selection::Bin pair = selection::FindInWarp(groups.x + groups.y, rank);
  const uint32_t of_upper = __shfl_sync(kWholeWarp, groups.y, pair.index);
  const bool in_upper = pair.rank <= of_upper;
  const uint32_t group = 2 * pair.index + (in_upper ? 1 : 0);
  uint32_t above = LaneId() > pair.index ? groups_before.x + groups_before.y : 0;
  if (LaneId() == pair.index && !in_upper) above = groups_before.y;
  uint32_t size = 0, before = 0;  // a bin per lane
#pragma unroll
  for (uint32_t cta = 0; cta < Team::kSize; ++cta) {
    const uint32_t* histogram = Team::Of(shared.histograms[buffer], cta);
    const uint32_t keys = histogram[group * kGroupBins + LaneId()];
    size += keys;
    before += cta < Team::Rank() ? keys : 0;
  }
  const selection::Bin bin =
      selection::FindInWarp(size, in_upper ? pair.rank : pair.rank - of_upper);
  if (LaneId() > bin.index) above += before;
  return {group * kGroupBins + bin.index, bin.rank, bin.size, __reduce_add_sync(kWholeWarp, above),
          __shfl_sync(kWholeWarp, before, bin.index)};
}

// Selected are the keys from `from`, and the first `equals` of those that are one lower.
struct Selected {
  uint32_t from;
  uint32_t equals;
  uint64_t before;  // Pack: keys of either kind in the parts before this one
};

// The keys [low, low + width), by the bits from `shift` up.
__device__ inline void CountInside(const Part& part, uint32_t low, uint32_t width, uint32_t shift,
                                   uint32_t* histogram, const Shared& shared) {
  const auto count = [&](uint32_t key) {
    if (key - low < width) atomicAdd(&histogram[(key - low) >> shift], 1u);
  };
  ForKeys(part, shared, [&](uint4 keys) {
    count(keys.x);
    count(keys.y);
    count(keys.z);
    count(keys.w);
  });
}

// The first histogram is given: all keys by their
// upper bits, in buffer 0; buffer 1 is clear. `meanwhile` is done in the first round by all warps
// but one. REQUIRES: ArriveInCluster was called when the CTA began. To be waited for is another
// one, after which nobody reads this CTA's shared memory.
template <typename Team, typename Meanwhile>
__device__ Selected FindSelected(const Part& part, Shared& shared, const Meanwhile& meanwhile) {
  uint32_t low = 0, above = 0, want = part.want;
  uint32_t shift = 32 - kBinBits;
  for (uint32_t round = 0;; ++round) {
    const uint32_t buffer = round % 2;
    __syncthreads();
    SumGroups(shared, buffer);
    if (round == 0) WaitForCluster();  // all have begun
    ReleaseShared();
    ArriveInCluster();
    WaitForCluster();
    if (WarpId() == 0) {
      const Found found = FindBin<Team>(shared, buffer, want);
      if (LaneId() == 0) shared.found = found;
    } else if (round == 0) {
      meanwhile();
    }
    // All CTAs have read what the buffer of the next round held.
    if (round > 0) Clear(shared.histograms[1 - buffer]);
    __syncthreads();
    const Found found = shared.found;
    low += found.bin << shift;
    above += found.above;
    want = found.rank;
    if (want == found.size || shift == 0) {
      ArriveInCluster();
      if (want == found.size) return {low, 0, selection::Pack(above + found.inside, 0)};
      return {low + 1, want, selection::Pack(above, found.inside)};
    }
    const uint32_t width = 1u << shift;
    shift = shift > kBinBits ? shift - kBinBits : 0;
    CountInside(part, low, width, shift, shared.histograms[1 - buffer], shared);
  }
}

}  // namespace sparsekv::cuda::fused
