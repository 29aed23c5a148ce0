#pragma once

#include <cstdint>

#include "kernels/cuda/score_select_candidates.cuh"
#include "kernels/cuda/score_select_unit.cuh"

// What 32 pages of a long row say of its last selected score: a bound that most probably no fewer
// tokens reach than are wanted, and few more. Every CTA of the row takes the same sample, so that
// none waits for another. Where the bound is too high after all, the row is scored again without
// one; what is selected depends on it in no case.
namespace sparsekv::cuda::fused {

// The sample's pages. They lie apart by equal steps, as scores of neighbours are alike, and all
// their tokens compete. Complete after a barrier.
__device__ inline void ListSample(const Part& part, Shared& shared) {
  const uint32_t i = threadIdx.x;
  if (i >= kSamplePages) return;
  const uint32_t whole = (part.competing + kSinkTokens) / kBlockTokens;  // pages of the row
  const auto* pages =
      reinterpret_cast<const unsigned long long*>(part.pages) - part.first / kBlockTokens;
  const auto* labels =
      reinterpret_cast<const std::byte*>(__ldg(pages + whole * (2 * i + 1) / (2 * kSamplePages)));
  shared.sample_pages[i] = labels + part.page_offset;
}

// The sum or the highest of every thread's value, by all threads of the CTA. `totals`: one per
// warp; those of the call before may still be read.
template <bool kHighest>
__device__ uint32_t OfCta(uint32_t value, uint32_t* totals) {
  const auto of_warp = [](uint32_t of) {
    return kHighest ? __reduce_max_sync(kWholeWarp, of) : __reduce_add_sync(kWholeWarp, of);
  };
  value = of_warp(value);
  if (LaneId() == 0) totals[WarpId()] = value;
  __syncthreads();
  return of_warp(LaneId() < kWarps ? totals[LaneId()] : 0);
}

// A key that no less than `rank` of the CTA's keys reach, and no more than `most` but for equal
// ones: by halving what it may be.
template <uint32_t kKeys>
__device__ uint32_t KeyOfRank(uint32_t rank, uint32_t most, const uint32_t (&keys)[kKeys],
                              Shared& shared) {
  uint32_t highest = 0;
#pragma unroll
  for (uint32_t i = 0; i < kKeys; ++i) highest = max(highest, keys[i]);
  // Which enough reach, and too few.
  uint32_t low = 0, high = OfCta<true>(highest, shared.totals) + 1;  // keys end before the last
  // Four octaves below the highest, a good guess to begin with: an exponent's lowest bit is 23.
  constexpr uint32_t kOctaves = 4 << 23;
  uint32_t middle = high > kOctaves ? high - kOctaves : high / 2;
  for (uint32_t round = 1; high - low > 1; ++round) {
    uint32_t count = 0;
#pragma unroll
    for (uint32_t i = 0; i < kKeys; ++i) count += keys[i] >= middle ? 1 : 0;
    count = OfCta<false>(count, shared.totals + round % 2 * kWarps);
    if (count < rank) {
      high = middle;
    } else {
      low = middle;
      if (count <= most) break;
    }
    middle = low + (high - low) / 2;
  }
  return low;
}

// By the whole CTA, of a row with parts of more tokens than keys are kept of. None where too few of
// the sample's scores are numbers.
template <typename Scorer>
__device__ Bound SampleBound(const Job& job, const Part& part, const Scorer& scorer,
                             Shared& shared) {
  constexpr uint32_t kTokens = Scorer::kTokens;
  using U = Unit<kTokens>;
  uint32_t keys[kCutTokens / kWarpThreads];
  const auto* pages = shared.sample_pages + WarpId() * kCutPages;
  typename Scorer::Ahead ahead;
  scorer.Begin(pages, ahead);
#pragma unroll
  for (uint32_t i = 0; i < U::kOfCut; ++i) {
    Pooled<kTokens> pooled;
    const uint32_t next = min(i + 1, U::kOfCut - 1);
    scorer.Score(job, pages + i * U::kPages, pages + next * U::kPages, ahead, shared, pooled);
#pragma unroll
    for (uint32_t t = 0; t < kTokens; ++t) {
      keys[i * kTokens + t] = selection::KeyOf(__float_as_uint(pooled.scores[t]));
    }
  }
  // As many of the sample as are expected, and six standard deviations of independent tokens.
  constexpr uint32_t kSample = kWarps * kCutTokens;
  const float expected = static_cast<float>(part.want) * kSample / part.competing;
  const auto rank = static_cast<uint32_t>(expected + 6 * __fsqrt_rn(expected)) + 8;
  const uint32_t key = KeyOfRank(rank, rank + rank / 8, keys, shared);
  return key > selection::kNanKey ? BoundOf({key, 0}) : Bound{};
}

}  // namespace sparsekv::cuda::fused
