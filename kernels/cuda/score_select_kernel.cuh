#pragma once

#include <cstdint>

#include "base/check.h"
#include "kernels/cuda/begin_kernel.cuh"
#include "kernels/cuda/score_select_candidates.cuh"
#include "kernels/cuda/score_select_find.cuh"
#include "kernels/cuda/score_select_row.cuh"
#include "kernels/cuda/score_select_sample.cuh"
#include "kernels/cuda/score_select_unit.cuh"
#include "kernels/cuda/select_write.cuh"

// Scores of label pages and the selection among them, in one kernel. Bound by the labels' bytes:
// LabelBytes in per token and KV head; scores go nowhere.
//
// A row (a KV head of an item) has one CTA, or a cluster of up to 16 where there are few rows, each
// with an equal part: so many that all CTAs of the device are at work, and once if possible. A
// sample says how high the last selected score will be about (score_select_sample.cuh). A warp
// takes a cut of 128 tokens at a time. What may be selected is kept in shared memory
// (score_select_candidates.cuh), so that no CTA waits for another one while it scores. Then the
// cluster finds the last selected candidate (score_select_find.cuh), and each CTA lists what it has
// of them in order: a bit per token, a running sum over the bits. Then it says that it has
// (rows_done.cuh). Labels are asked for by nothing but loads that say that they are read once:
// prefetches fill L2, and what a step needs again, page table entries of the host's rows above
// all, has left it then.
//
// A Scorer has kTokens of a lane, kStride from one to the next (1, or 32 where neighbours are other
// lanes'), and Score, which pools the scores of the lane's tokens in a unit of the given pages;
// meanwhile it may load what it needs of the next ones to Ahead, as Begin does for the first. It is
// made by the CTA, and gathers the part's queries then.
namespace sparsekv::cuda::fused {

// Scores the cut and keeps all its tokens, or what reaches the bound. `next`: the cut after it.
// Returns whether the room is full.
template <typename Scorer>
__device__ bool ScoreCut(const Job& job, const Part& part, const Scorer& scorer, uint32_t cut,
                         uint32_t next, const Bound& bound, typename Scorer::Ahead& ahead,
                         Shared& shared) {
  constexpr uint32_t kStride = Scorer::kStride;
  using U = Unit<Scorer::kTokens>;
  bool full = false;
#pragma unroll
  for (uint32_t i = 0; i < U::kOfCut; ++i) {
    const uint32_t unit = cut * U::kOfCut + i;
    const uint32_t next_unit = i + 1 < U::kOfCut ? unit + 1 : next * U::kOfCut;
    Pooled<Scorer::kTokens> pooled;
    scorer.Score(job, shared.pages + unit * U::kPages, shared.pages + next_unit * U::kPages, ahead,
                 shared, pooled);
    const uint32_t first = unit * U::kUnitTokens + U::OfLane(kStride);
    if (bound.none()) {
      KeepAll<kStride>(part, first, pooled.scores, shared);
    } else {
      full |= KeepHigh<kStride>(part, first, pooled.scores, bound, shared);
    }
  }
  return full;
}

// Scores the warp's cuts from `cut` on that begin before token `end` of the part, until the room is
// full. Returns the warp's next cut.
template <typename Scorer>
__device__ uint32_t ScoreCuts(const Job& job, const Part& part, const Scorer& scorer, uint32_t cut,
                              uint32_t end, const Bound& bound, Shared& shared) {
  const uint32_t cuts = end / kCutTokens;
  if (cut >= cuts) return cut;
  typename Scorer::Ahead ahead;
  scorer.Begin(shared.pages + cut * kCutPages, ahead);
  bool full = false;
#pragma unroll 1
  for (; cut < cuts && !full; cut += kWarps) {
    const uint32_t next = cut + kWarps < cuts ? cut + kWarps : cut;
    full = ScoreCut(job, part, scorer, cut, next, bound, ahead, shared);
  }
  return cut;
}

// All CTAs of the row have done with the histograms of a search; they are clear.
__device__ inline void EndSearch(Shared& shared) {
  ArriveInCluster();
  WaitForCluster();
  Clear(shared.histograms[0]);
  Clear(shared.histograms[1]);
  ArriveInCluster();
  __syncthreads();
}

// Returns the part's candidates. Its pages are listed, the histograms are clear. Ends
// with a barrier.
template <typename Scorer>
__device__ Candidates ScorePart(const Job& job, const Part& part, const Scorer& scorer, Bound bound,
                                Shared& shared) {
  uint32_t cut = WarpId();  // the warp's next one
  if (bound.none()) {
    const uint32_t first = part.tokens <= kMostKeys ? part.tokens : kFull;
    cut = ScoreCuts(job, part, scorer, cut, first, bound, shared);
    __syncthreads();
    if (first == part.tokens) return {first, true};
    bound = LeaveFirst(part, {first, true}, bound, shared);
  } else {
    if (threadIdx.x == 0) shared.candidates = 0;
    __syncthreads();
  }
  while (true) {
    cut = ScoreCuts(job, part, scorer, cut, part.tokens, bound, shared);
    __syncthreads();
    const Candidates candidates = {shared.candidates, false};
    if (candidates.count <= kFull) return candidates;  // no warp has stopped
    bound = LeaveFirst(part, candidates, bound, shared);
  }
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
  for (uint32_t i = threadIdx.x; i < part.tokens / kCutTokens; i += kThreads) {
    reinterpret_cast<uint4*>(shared.selected)[i] = uint4{};
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

// Writes the part's selected tokens, in order. A thread has those of some words that follow each
// other: an odd number, so that a warp's loads are of different banks.
__device__ inline void WriteSelected(const Part& part, const Selected& selected,
                                     Candidates candidates, Shared& shared) {
  MarkSelected(part, selected.last, candidates, shared);
  const uint32_t words = part.tokens / kWarpThreads;
  const uint32_t of_thread = (words + kThreads - 1) / kThreads | 1;
  const uint32_t first = threadIdx.x * of_thread;
  const auto bits = [&](uint32_t word) { return word < words ? shared.selected[word] : 0; };
  uint32_t count = 0;
  for (uint32_t i = 0; i < of_thread; ++i) count += __popc(bits(first + i));
  uint32_t at = selected.before + RunningSum(count, shared.totals).before;
  for (uint32_t i = 0; i < of_thread; ++i) {
    const uint32_t of_word = bits(first + i);
    selection::WriteWords(of_word, part.first + (first + i) * kWarpThreads, at, part.to);
    at += __popc(of_word);
  }
}

// The tokens that are selected whatever their scores.
__device__ inline void WriteAlwaysSet(const Job& job, const Item& item, uint32_t kv_head,
                                      uint32_t rank) {
  uint32_t* to = item.selection + kv_head * item.selection_stride;
  if (item.count == item.tokens) {
    const uint32_t first = rank * kThreads + threadIdx.x;
    for (uint32_t i = first; i < item.count; i += job.rows_done.ctas * kThreads) to[i] = i;
    return;
  }
  // There are more tokens than in the always-set.
  constexpr uint32_t kLast = kRecentTokens + 1;
  static_assert(kSinkTokens <= kThreads && kLast <= kThreads);
  if (rank == 0) {
    const uint32_t i = threadIdx.x;
    if (i < kSinkTokens) to[i] = i;
    if (i < kLast) to[item.count - kLast + i] = item.tokens - kLast + i;
  }
}

// By the whole CTA, when it has written what it has of the row.
__device__ inline void EndRow(const Job& job, uint32_t row) {
  __syncthreads();
  if (threadIdx.x == 0) SayDone(job.rows_done, row);
}

template <typename Scorer>
__device__ void ScoreAndSelectPart(const Job& job) {
  extern __shared__ uint4 dynamic_shared[];
  auto& shared = *reinterpret_cast<Shared*>(dynamic_shared);
  const uint32_t ctas = job.rows_done.ctas;
  const uint32_t row = blockIdx.x / ctas;
  const Cluster cluster = {ctas, blockIdx.x % ctas};
  const Item& item = job.items[row / job.kv_heads];
  const uint32_t kv_head = row % job.kv_heads;
  const Part& part = shared.part;
  // All labels but the newest are there already.
  if (item.Chooses()) {
    if (threadIdx.x == 0) shared.part = CutRow(job, item, kv_head, cluster.rank);
    Clear(shared.histograms[0]);
    Clear(shared.histograms[1]);
    __syncthreads();
    if (part.sampled) ListSample(part, shared);
    if (part.tokens > 0) ListPages(part, shared);
  }
  // In this order: attention that begins with the first rows relies on it that all CTAs have
  // waited, as it does not wait for kernels before this one (rows_done.cuh).
  BeginKernel();
  NextMayBegin();
  WriteAlwaysSet(job, item, kv_head, cluster.rank);
  if (!item.Chooses()) return EndRow(job, row);
  ArriveInCluster();
  const Scorer scorer(job, part, shared);
  Bound bound;
  if (part.sampled) bound = SampleBound(job, part, scorer, shared);
  Candidates candidates;
  Selected selected;
  while (true) {
    candidates = ScorePart(job, part, scorer, bound, shared);
    selected = Search(cluster, part, candidates, bound.place.key, part.want, part.want, shared);
    if (selected.found) break;
    EndSearch(shared);
    bound = {};  // that of the sample was too high
  }
  ArriveInCluster();
  WriteSelected(part, selected, candidates, shared);
  WaitForCluster();  // nobody reads this CTA's shared memory any more
  EndRow(job, row);
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

// Returns the CTAs of a row; 0 where there are never enough, and no kernel is noted.
template <typename Scorer>
uint32_t Launch(Job job, const Work& work, Tape& tape) {
  const auto kernel = ScoreSelectKernel<Scorer>;
  static const ClustersAtOnce at_once = CountClusters(kernel);  // a process has one device
  const uint32_t ctas = job.rows_done.ctas = CtasOfRow(work, at_once);
  if (ctas == 0) return 0;
  tape.LaunchClusters(ctas, kernel, dim3(work.rows * ctas), dim3(kThreads), sizeof(Shared), job);
  return ctas;
}

}  // namespace sparsekv::cuda::fused
