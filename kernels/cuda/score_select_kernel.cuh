#pragma once

#include <cstdint>

#include "base/check.h"
#include "kernels/cuda/begin_kernel.cuh"
#include "kernels/cuda/score_part.cuh"
#include "kernels/cuda/score_select_find.cuh"
#include "kernels/cuda/score_select_row.cuh"
#include "kernels/cuda/tape.h"

// Scores of label pages and the selection among them, in one kernel. Bound by the labels' bytes:
// LabelBytes in per token and KV head; scores go nowhere.
//
// A cluster of 8 CTAs takes the row of a KV head of an item, each CTA an equal part of it. A warp's
// unit of work is 32 lanes of 4 neighbouring tokens (2 where 8 query heads share a label). What a
// lane scores it keeps in shared memory as a key (select_threshold.cuh) and counts in the first
// histogram. Labels of the units that come next are on their way to L2 meanwhile. Then the cluster
// finds the last selected key (score_select_find.cuh), and every warp writes what it selects of
// 1,024 tokens at a time: a bit per token, a running sum over the bits' words. While it does so
// memory would rest, so it asks L2 to bring what the next row on its multiprocessor will read
// first.
//
// Keys beyond what shared memory holds are spilled to the item's scores.
//
// A Scorer has kHeads (query heads that share a label in registers), kWide (it is worth a kernel
// for wide clusters too), Lines(job), the 128-byte lines of a page's labels, and Score, which gives
// the keys of the lane's tokens in a page. It is made by the CTA, and gathers the part's queries
// then.
namespace sparsekv::cuda::fused {

using selection::kNoKey;

// Query heads that share a label in registers.
inline constexpr uint32_t kMostHeads = 8;
// Neighbouring tokens of a lane: registers for heads x tokens sums, and 8 channels of labels.
template <uint32_t kHeads>
inline constexpr uint32_t kLaneTokens = kHeads < kMostHeads ? 4 : 2;
// Of a CTA, ahead of the row that comes next.
inline constexpr uint32_t kAheadBytes = 96 << 10;
// CTAs of a row where there are few rows.
inline constexpr uint32_t kWideClusterCtas = 16;
// Rounds of units that labels are asked for ahead of the one in work.
inline constexpr uint32_t kRoundsAhead = 2;
// Pages whose labels are asked for before the query is there.
inline constexpr uint32_t kFirstPages = 128;

template <uint32_t kTokens>
struct Unit {
  static constexpr uint32_t kUnitTokens = kWarpThreads * kTokens;
  static constexpr uint32_t kPageLanes = kBlockTokens / kTokens;
  static constexpr uint32_t kPages = kUnitTokens / kBlockTokens;
  static_assert(kCutTokens % kUnitTokens == 0 && kCachedTokens % kUnitTokens == 0);
  using Keys = std::conditional_t<kTokens == 4, uint4, uint2>;

  // The lane's page of the unit.
  __device__ static const std::byte* Page(uint32_t unit, const Shared& shared) {
    return shared.pages[unit * kPages + LaneId() / kPageLanes];
  }
  __device__ static void Ask(const std::byte* page, uint32_t lines) {
#pragma unroll 1
    for (uint32_t line = LaneId() % kPageLanes; line < lines; line += kPageLanes) {
      BringToL2(page + line * kLineBytes);
    }
  }

  // Keeps the lane's keys, of tokens from `first` on, and counts them by their upper bits.
  __device__ static void Keep(const Part& part, uint32_t first, uint32_t (&keys)[kTokens],
                              Shared& shared) {
    if (first < kCutTokens || first + kCutTokens >= part.tokens) {
#pragma unroll
      for (uint32_t t = 0; t < kTokens; ++t) keys[t] = Competes(part, first + t) ? keys[t] : kNoKey;
    }
    Keys vector;
    if constexpr (kTokens == 4) {
      vector = {keys[0], keys[1], keys[2], keys[3]};
    } else {
      vector = {keys[0], keys[1]};
    }
    if (first < kCachedTokens) {
      reinterpret_cast<Keys*>(shared.keys)[first / kTokens] = vector;
    } else if (first < part.end) {
      *reinterpret_cast<Keys*>(part.spilled + first) = vector;
    }
#pragma unroll
    for (uint32_t t = 0; t < kTokens; ++t) {
      atomicAdd(&shared.histograms[0][keys[t] >> (32 - kBinBits)], 1u);
    }
  }
};

// The scores of a lane's tokens, pooled over the heads so far.
template <uint32_t kTokens>
struct Pooled {
  float scores[kTokens];
  float first[kTokens];  // of the first head

  template <uint32_t kHeads>
  __device__ void Add(const Job& job, uint32_t first_head, const float (&sums)[kHeads][kTokens]) {
    const bool max = job.pooling == Pooling::kMaxNormalised;
#pragma unroll
    for (uint32_t t = 0; t < kTokens; ++t) {
      if (first_head == 0) {
        scores[t] = first[t] = sums[0][t];
      } else {
        scores[t] = max ? fmaxf(scores[t], sums[0][t]) : __fadd_rn(scores[t], sums[0][t]);
      }
    }
#pragma unroll
    for (uint32_t h = 1; h < kHeads; ++h) {
      if (first_head + h >= job.group) continue;
#pragma unroll
      for (uint32_t t = 0; t < kTokens; ++t) {
        scores[t] = max ? fmaxf(scores[t], sums[h][t]) : __fadd_rn(scores[t], sums[h][t]);
      }
    }
  }

  // As of std::max over the heads: NaN where the first head's score is, and only there.
  __device__ void ToKeys(const Job& job, uint32_t (&keys)[kTokens]) const {
    const bool max = job.pooling == Pooling::kMaxNormalised;
#pragma unroll
    for (uint32_t t = 0; t < kTokens; ++t) {
      const float decides = max ? first[t] : scores[t];
      keys[t] = decides != decides ? selection::kNanKey : selection::KeyOfNumber(scores[t]);
    }
  }
};

// The keys of the part and their first histogram, which is clear. Complete after a barrier. The
// first kCachedTokens' pages have been brought.
template <typename Scorer>
__device__ void ScorePart(const Job& job, const Part& part, Shared& shared) {
  constexpr uint32_t kTokens = kLaneTokens<Scorer::kHeads>;
  using U = Unit<kTokens>;
  constexpr uint32_t kAsked = kRoundsAhead * kWarps * U::kPages;
  const Scorer scorer(job, part, shared);
#pragma unroll 1
  for (uint32_t from = 0; from < part.tokens; from += kCachedTokens) {
    if (from > 0) {
      __syncthreads();
      BringPages(job, part, from, kAsked, shared);
      __syncthreads();
    }
    const uint32_t units = min(part.tokens - from, kCachedTokens) / U::kUnitTokens;
#pragma unroll 1
    for (uint32_t unit = WarpId(); unit < units; unit += kWarps) {
      uint32_t keys[kTokens];
      const uint32_t ahead = unit + kRoundsAhead * kWarps;
      if (ahead < units) U::Ask(U::Page(ahead, shared), Scorer::Lines(job));
      scorer.Score(job, U::Page(unit, shared), shared, keys);
      U::Keep(part, from + unit * U::kUnitTokens + LaneId() * kTokens, keys, shared);
    }
  }
}

// Whether scores decide anything.
__device__ inline bool Chooses(const Item& item) {
  return item.count > AlwaysSetSize(item.tokens) && item.count < item.tokens;
}

// Has L2 bring the first labels of the same part of the row that comes when this one is done. By
// all warps but one.
template <typename Team>
__device__ void AskForNextRow(const Job& job) {
  const uint32_t row = Team::Row() + job.rows_at_once;
  if (row >= job.rows) return;
  const Item& item = job.items[row / job.kv_heads];
  if (!Chooses(item)) return;
  const Part part = CutRow<Team>(job, item, row % job.kv_heads);
  const uint32_t pages = (TokensInUse(part) + kBlockTokens - 1) / kBlockTokens;
  const uint32_t lines = min(pages * job.lines, kAheadBytes / kLineBytes);
#pragma unroll 1
  for (uint32_t i = threadIdx.x - kWarpThreads; i < lines; i += kThreads - kWarpThreads) {
    BringToL2(LabelsOfPage(part, i / job.lines) + i % job.lines * kLineBytes);
  }
}

// The selection bits of 32 words of 32 keys, a word per lane; key_of(i): that of the i-th key.
template <typename KeyOf>
__device__ void Mark(const Selected& selected, const KeyOf& key_of, uint32_t& above,
                     uint32_t& equal) {
#pragma unroll 8
  for (uint32_t word = 0; word < kWarpThreads; ++word) {
    const uint32_t key = key_of(word * kWarpThreads + LaneId());
    const uint32_t is_above = __ballot_sync(kWholeWarp, key >= selected.from);
    if (LaneId() == word) above = is_above;
    if (selected.equals > 0) {
      const uint32_t is_equal = __ballot_sync(kWholeWarp, key == selected.from - 1);
      if (LaneId() == word) equal = is_equal;
    }
  }
}

// Writes the part's selected tokens, in order.
__device__ inline void WriteSelected(const Part& part, const Selected& selected, Shared& shared) {
  constexpr uint32_t kWarpTokens = kWarpThreads * kWarpThreads;
  const auto* keys = reinterpret_cast<const uint32_t*>(shared.keys);
  uint64_t before = selected.before;
#pragma unroll 1
  for (uint32_t tile = 0; tile < part.tokens; tile += kWarps * kWarpTokens) {
    const uint32_t first = tile + WarpId() * kWarpTokens;
    uint32_t above = 0, equal = 0;
    if (first + kWarpTokens <= min(part.tokens, kCachedTokens)) {
      Mark(
          selected, [&](uint32_t i) { return keys[first + i]; }, above, equal);
    } else if (first < part.tokens) {
      Mark(
          selected, [&](uint32_t i) { return KeyOfToken(part, shared, first + i); }, above, equal);
    }
    const Running<uint64_t> sum =
        RunningSum(selection::Pack(__popc(above), __popc(equal)), shared.warp_totals);
    const uint32_t equal_before = selection::Equal(before + sum.before);
    const uint32_t at = selection::Above(before + sum.before) + min(equal_before, selected.equals);
    if (equal_before < selected.equals) {
      above |= selection::LowestBits(equal, selected.equals - equal_before);
    }
    selection::WriteWords(above, part.first + first + LaneId() * kWarpThreads, at, part.to);
    before += sum.all;
  }
}

// The tokens that are selected whatever their scores; true when that is all.
template <typename Team>
__device__ bool WriteAlwaysSet(const Item& item, uint32_t kv_head) {
  uint32_t* to = item.selection + kv_head * item.selection_stride;
  if (item.count == item.tokens) {
    const uint32_t first = Team::Rank() * kThreads + threadIdx.x;
    for (uint32_t i = first; i < item.count; i += Team::kSize * kThreads) to[i] = i;
    return true;
  }
  // There are more tokens than in the always-set.
  constexpr uint32_t kLast = kRecentTokens + 1;
  static_assert(kSinkTokens <= kThreads && kLast <= kThreads);
  if (Team::Rank() == 0) {
    const uint32_t i = threadIdx.x;
    if (i < kSinkTokens) to[i] = i;
    if (i < kLast) to[item.count - kLast + i] = item.tokens - kLast + i;
  }
  return item.count == kSinkTokens + kLast;
}

template <typename Team, typename Scorer>
__device__ void ScoreAndSelectRow(const Job& job) {
  extern __shared__ uint4 dynamic_shared[];
  auto& shared = *reinterpret_cast<Shared*>(dynamic_shared);
  const Item& item = job.items[Team::Row() / job.kv_heads];
  const uint32_t kv_head = Team::Row() % job.kv_heads;
  const Part& part = shared.part;
  // All labels but the newest are there already.
  if (Chooses(item)) {
    if (threadIdx.x == 0) shared.part = CutRow<Team>(job, item, kv_head);
    Clear(shared.histograms[0]);
    Clear(shared.histograms[1]);
    __syncthreads();
    if (part.tokens > 0) BringPages(job, part, 0, kFirstPages, shared);
  }
  BeginKernel();
  if (WriteAlwaysSet<Team>(item, kv_head)) return;
  ArriveInCluster();
  ScorePart<Scorer>(job, part, shared);
  const Selected selected = FindSelected<Team>(part, shared, [&] { AskForNextRow<Team>(job); });
  WriteSelected(part, selected, shared);
  WaitForCluster();
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define SPARSEKV_CLUSTER(ctas) __cluster_dims__(ctas, 1, 1)
#else
#define SPARSEKV_CLUSTER(ctas)
#endif

// A cluster per row.
template <uint32_t kCtas, typename Scorer>
__global__ void SPARSEKV_CLUSTER(kCtas) __launch_bounds__(kThreads, kCtasPerMultiprocessor)
    ScoreSelectKernel(const Job job) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  ScoreAndSelectRow<selection::Team<kCtas>, Scorer>(job);
#endif
}

// Clusters of that many CTAs that the device runs at once; 0 where it has none of that size. The
// kernel is prepared for them.
template <uint32_t kCtas>
int ClustersAtOnce(void (*kernel)(Job)) {
  const auto* function = reinterpret_cast<const void*>(kernel);
  // Without being asked the driver may give the kernel too little shared memory for two CTAs.
  CUDA_CHECK(cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout,
                                  cudaSharedmemCarveoutMaxShared));
  CUDA_CHECK(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(sizeof(Shared))));
  CUDA_CHECK(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed,
                                  kCtas > 8 ? 1 : 0));
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kCtas, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(kCtas);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = sizeof(Shared);
  config.attrs = &cluster;
  config.numAttrs = 1;
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, function, &config) == cudaSuccess) return clusters;
  cudaGetLastError();
  return 0;
}

template <uint32_t kCtas, typename Scorer>
bool LaunchClusters(Job job, uint32_t least, Tape& tape) {
  const auto kernel = ScoreSelectKernel<kCtas, Scorer>;
  static const int at_once = ClustersAtOnce<kCtas>(kernel);
  if (at_once < static_cast<int>(least)) return false;
  job.rows_at_once = static_cast<uint32_t>(at_once);
  tape.Launch(kernel, dim3(job.rows * kCtas), dim3(kThreads), sizeof(Shared), job);
  return true;
}

template <typename Scorer>
bool Launch(const Job& job, Tape& tape) {
  // So few rows that CTAs of more than 8 for each find multiprocessors of their own.
  if constexpr (Scorer::kWide) {
    if (job.rows * kWideClusterCtas <= static_cast<uint32_t>(tape.multiprocessors()) &&
        LaunchClusters<kWideClusterCtas, Scorer>(job, job.rows, tape)) {
      return true;
    }
  }
  return LaunchClusters<selection::kClusterCtas, Scorer>(job, 1, tape);
}

}  // namespace sparsekv::cuda::fused
