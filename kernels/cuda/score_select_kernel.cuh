#pragma once

#include <cstdint>

#include "base/check.h"
#include "kernels/cuda/begin_kernel.cuh"
#include "kernels/cuda/score_part.cuh"
#include "kernels/cuda/score_select_candidates.cuh"
#include "kernels/cuda/score_select_find.cuh"
#include "kernels/cuda/score_select_row.cuh"
#include "kernels/cuda/select_write.cuh"

// Scores of label pages and the selection among them, in one kernel. Bound by the labels' bytes:
// LabelBytes in per token and KV head; scores go nowhere.
//
// A row (a KV head of an item) has one CTA, or a cluster of up to 16 where there are few rows, each
// with an equal part: so many that all CTAs of the device are at work, and once if possible. A
// warp's unit of work is some tokens a lane; labels of the units that come next are on their way to
// L2 meanwhile. What may be selected is kept in shared memory (score_select_candidates.cuh), so
// that no CTA waits for another one while it scores. Then the cluster finds the last selected
// candidate (score_select_find.cuh), and each CTA lists what it has of them in order: a bit per
// token, a running sum over the bits' words.
//
// A Scorer has kTokens of a lane, kStride from one to the next (1, or 32 where neighbours are other
// lanes'), Lines(job), the 128-byte lines of a page's labels, and Score, which pools the scores of
// the lane's tokens in a unit. It is made by the CTA, and gathers the part's queries then.
namespace sparsekv::cuda::fused {

// Query heads that share a label in registers.
inline constexpr uint32_t kMostHeads = 8;
// Rounds of units that labels are asked for ahead of the one in work.
inline constexpr uint32_t kRoundsAhead = 2;
// Pages whose labels are asked for before the query is there.
inline constexpr uint32_t kFirstPages = 128;

template <uint32_t kTokens>
struct Unit {
  static constexpr uint32_t kUnitTokens = kWarpThreads * kTokens;
  static constexpr uint32_t kPageLanes = kBlockTokens / kTokens;
  static constexpr uint32_t kPages = kUnitTokens / kBlockTokens;
  static_assert(kCutTokens % kUnitTokens == 0 && kUnitTokens * kWarps <= kRoundTokens);

  // The lane's page of the unit.
  __device__ static const std::byte* Page(uint32_t unit, const Shared& shared) {
    return shared.pages[unit * kPages + LaneId() / kPageLanes];
  }
  // Asks L2 for the labels of this unit and the warp's next, if they are among `units`.
  __device__ static void Ask(uint32_t unit, uint32_t units, uint32_t lines, const Shared& shared) {
#pragma unroll 1
    for (uint32_t i = LaneId(); i < 2 * kPages * lines; i += kWarpThreads) {
      const uint32_t page = i / lines;
      const uint32_t of = unit + page / kPages * kWarps;
      if (of < units) {
        BringToL2(shared.pages[of * kPages + page % kPages] + i % lines * kLineBytes);
      }
    }
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

// Scores tokens [from, end) of the part and keeps what reaches the bound.
template <typename Scorer>
__device__ void ScoreTokens(const Job& job, const Part& part, const Scorer& scorer, uint32_t from,
                            uint32_t end, Bound bound, Shared& shared) {
  constexpr uint32_t kTokens = Scorer::kTokens, kStride = Scorer::kStride;
  using U = Unit<kTokens>;
  const uint32_t units = part.tokens / U::kUnitTokens;
#pragma unroll 1
  for (uint32_t unit = from / U::kUnitTokens + WarpId(); unit < end / U::kUnitTokens;
       unit += kWarps) {
    const uint32_t ahead = unit + kRoundsAhead * kWarps;
    if (unit / kWarps % 2 == 0) U::Ask(ahead, units, Scorer::Lines(job), shared);
    Pooled<kTokens> pooled;
    scorer.Score(job, unit, shared, pooled);
    const uint32_t first = unit * U::kUnitTokens + LaneId() * (kStride == 1 ? kTokens : 1);
    if (bound.key == kNoKey) {
      KeepAll<kStride>(part, first, pooled.scores, shared);
    } else {
      KeepHigh<kStride>(part, first, pooled.scores, bound, shared);
    }
  }
}

// Returns the part's candidates. Its pages have been brought, the histograms are clear. Ends
// with a barrier, or it has no tokens.
template <typename Scorer>
__device__ Candidates ScorePart(const Job& job, const Part& part, Shared& shared) {
  if (part.tokens == 0) return {0, true};
  const Scorer scorer(job, part, shared);
  uint32_t done = part.tokens <= kMostKeys ? part.tokens : kCandidates;
  Candidates candidates = {done, true};
  Bound bound;
  ScoreTokens(job, part, scorer, 0, done, bound, shared);
  __syncthreads();
  while (done < part.tokens) {
    if (candidates.count > part.want + (kCandidates - part.want) / 2) {
      bound = LeaveFirst(part, candidates, shared);
      candidates = {shared.candidates, false};
    }
    __syncthreads();  // all know how many there are
    // So many that all of them could be kept; there is room for a round at least.
    static_assert((kCandidates - kMostWanted) / 2 >= kRoundTokens);
    const uint32_t rounds = (kCandidates - candidates.count) / kRoundTokens;
    const uint32_t end = min(part.tokens, done + rounds * kRoundTokens);
    ScoreTokens(job, part, scorer, done, end, bound, shared);
    __syncthreads();
    candidates.count = shared.candidates;
    done = end;
  }
  return candidates;
}

// Whether scores decide anything.
__device__ inline bool Chooses(const Item& item) {
  return item.count > AlwaysSetSize(item.tokens) && item.count < item.tokens;
}

// A bit per token of the part into shared.selected. Ends with a barrier.
__device__ inline void MarkSelected(const Part& part, Place last, Candidates candidates,
                                    Shared& shared) {
  if (candidates.all) {
#pragma unroll 4
    for (uint32_t word = WarpId(); word < part.tokens / kWarpThreads; word += kWarps) {
      const uint32_t token = word * kWarpThreads + LaneId();
      const bool selected = Reaches(part, shared.keys[token], token, last);
      const uint32_t bits = __ballot_sync(kWholeWarp, selected);
      if (LaneId() == 0) shared.selected[word] = bits;
    }
    __syncthreads();
    return;
  }
  for (uint32_t i = threadIdx.x; i < part.tokens / kWarpThreads; i += kThreads) {
    shared.selected[i] = 0;
  }
  __syncthreads();
#pragma unroll 4
  for (uint32_t i = threadIdx.x; i < candidates.count; i += kThreads) {
    const uint32_t token = candidates.Token(shared, i);
    if (!Reaches(part, shared.keys[i], token, last)) continue;
    atomicOr(&shared.selected[token / kWarpThreads], 1u << token % kWarpThreads);
  }
  __syncthreads();
}

// Writes the part's selected tokens, in order.
__device__ inline void WriteSelected(const Part& part, const Selected& selected,
                                     Candidates candidates, Shared& shared) {
  MarkSelected(part, selected.last, candidates, shared);
  const uint32_t words = part.tokens / kWarpThreads;
  uint32_t before = selected.before;
#pragma unroll 1
  for (uint32_t tile = 0; tile < words; tile += kThreads) {
    const uint32_t word = tile + threadIdx.x;
    const uint32_t bits = word < words ? shared.selected[word] : 0;
    const auto sum = RunningSum(static_cast<uint32_t>(__popc(bits)), shared.warp_totals);
    selection::WriteWords(bits, part.first + word * kWarpThreads, before + sum.before, part.to);
    before += sum.all;
  }
}

// The tokens that are selected whatever their scores; true when that is all.
__device__ inline bool WriteAlwaysSet(const Job& job, const Item& item, uint32_t kv_head,
                                      uint32_t rank) {
  uint32_t* to = item.selection + kv_head * item.selection_stride;
  if (item.count == item.tokens) {
    const uint32_t first = rank * kThreads + threadIdx.x;
    for (uint32_t i = first; i < item.count; i += job.ctas * kThreads) to[i] = i;
    return true;
  }
  // There are more tokens than in the always-set.
  constexpr uint32_t kLast = kRecentTokens + 1;
  static_assert(kSinkTokens <= kThreads && kLast <= kThreads);
  if (rank == 0) {
    const uint32_t i = threadIdx.x;
    if (i < kSinkTokens) to[i] = i;
    if (i < kLast) to[item.count - kLast + i] = item.tokens - kLast + i;
  }
  return item.count == kSinkTokens + kLast;
}

template <typename Scorer>
__device__ void ScoreAndSelectPart(const Job& job) {
  extern __shared__ uint4 dynamic_shared[];
  auto& shared = *reinterpret_cast<Shared*>(dynamic_shared);
  const uint32_t row = blockIdx.x / job.ctas;
  const Cluster cluster = {job.ctas, blockIdx.x % job.ctas};
  const Item& item = job.items[row / job.kv_heads];
  const uint32_t kv_head = row % job.kv_heads;
  const Part& part = shared.part;
  // All labels but the newest are there already.
  if (Chooses(item)) {
    if (threadIdx.x == 0) shared.part = CutRow(job, item, kv_head, cluster.rank);
    Clear(shared.histograms[0]);
    Clear(shared.histograms[1]);
    __syncthreads();
    if (part.tokens > 0) BringPages(job, part, kFirstPages, shared);
  }
  BeginKernel();
  if (WriteAlwaysSet(job, item, kv_head, cluster.rank)) return;
  ArriveInCluster();
  const Candidates candidates = ScorePart<Scorer>(job, part, shared);
  const Selected selected = Search(cluster, part, candidates, part.want, part.want, shared);
  ArriveInCluster();
  WriteSelected(part, selected, candidates, shared);
  WaitForCluster();  // nobody reads this CTA's shared memory any more
}

// A cluster per row.
template <typename Scorer>
__global__ void __launch_bounds__(kThreads, kCtasPerMultiprocessor)
    ScoreSelectKernel(const Job job) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  ScoreAndSelectPart<Scorer>(job);
#endif
}

// Of the kernel, which is prepared for them.
inline ClustersAtOnce CountClusters(void (*kernel)(Job)) {
  const auto* function = reinterpret_cast<const void*>(kernel);
  // Without being asked the driver may give the kernel too little shared memory for two CTAs.
  CUDA_CHECK(cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout,
                                  cudaSharedmemCarveoutMaxShared));
  CUDA_CHECK(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(sizeof(Shared))));
  CUDA_CHECK(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  ClustersAtOnce at_once;
  for (uint32_t i = 0; i <= kMostCtasBits; ++i) {
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {1u << i, 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(1u << i);
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = sizeof(Shared);
    config.attrs = &cluster;
    config.numAttrs = 1;
    int clusters = 0;
    if (cudaOccupancyMaxActiveClusters(&clusters, function, &config) == cudaSuccess) {
      at_once.of[i] = static_cast<uint32_t>(clusters);
    } else {
      cudaGetLastError();
    }
  }
  return at_once;
}

template <typename Scorer>
bool Launch(Job job, const Work& work, Tape& tape) {
  const auto kernel = ScoreSelectKernel<Scorer>;
  static const ClustersAtOnce at_once = CountClusters(kernel);  // a process has one device
  job.ctas = CtasOfRow(work, at_once);
  if (job.ctas == 0) return false;
  tape.LaunchClusters(job.ctas, kernel, dim3(work.rows * job.ctas), dim3(kThreads), sizeof(Shared),
                      job);
  return true;
}

}  // namespace sparsekv::cuda::fused
