#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "base/limits.h"
#include "kernels/cuda/cta.cuh"
#include "kernels/cuda/rows_done.cuh"
#include "kernels/cuda/score_select_ctas.h"
#include "kernels/cuda/select_threshold.cuh"
#include "kernels/cuda/tables.cuh"
#include "kernels/labels.h"
#include "kernels/select.h"

// How the CTAs of a row (score_select_ctas.h) cut it, and what each keeps of its part.
namespace sparsekv::cuda::fused {

inline constexpr uint32_t kThreads = 512;
inline constexpr uint32_t kWarps = kThreads / kWarpThreads;
// CTAs of a multiprocessor: what its shared memory has room for, and 64 registers a thread.
inline constexpr uint32_t kCtasPerMultiprocessor = 2;
inline constexpr uint32_t kCutPages = kCutTokens / kBlockTokens;
inline constexpr uint32_t kSamplePages = kWarps * kCutPages;  // score_select_sample.cuh
inline constexpr uint32_t kPartPages = kPartTokens / kBlockTokens;
inline constexpr uint32_t kMostQueryValues = 1280;  // of a row: query heads times channels, codes

struct Item {
  LabelsView labels;
  uint32_t* selection;
  uint64_t selection_stride;
  uint32_t query;
  uint32_t tokens;
  uint32_t count;

  // Whether scores decide anything.
  __host__ __device__ bool Chooses() const {
    return count > AlwaysSetSize(tokens) && count < tokens;
  }
};

// By value: no padding, as its bytes are part of the step's shape.
struct Job {
  const Item* items;
  const float* q;
  const uint16_t* channel_list;
  RowsDone rows_done;
  uint32_t kv_heads;
  uint32_t group;
  uint32_t head_dim;
  uint32_t channels;
  uint32_t words;  // of a label's codes
  Pooling pooling;
  uint8_t bits;  // of a code
  uint8_t zeros[2];
};
static_assert(std::has_unique_object_representations_v<Job>);

// The tokens of a CTA, counted from its first.
struct Part {
  std::byte* const* pages;  // from the part's first
  uint64_t page_offset;
  uint32_t* to;          // where the row's selected tokens are listed, but for the always-set
  uint64_t first_query;  // row of q
  uint32_t kv_head;
  uint32_t first;      // token of the row
  uint32_t tokens;     // in whole kCutTokens, at most kPartTokens
  uint32_t skip;       // tokens that do not compete
  uint32_t end;        // of those that do; 0 when there are none
  uint32_t want;       // how many of the row's are selected
  uint32_t competing;  // tokens of the row
  bool sampled;        // some part of the row has more tokens than keys are kept of
};

// What is known of the last selected candidate after a round of the search.
struct Found {
  uint32_t bin;
  uint32_t rank;    // of the candidate in its bin, from 1, the highest first
  uint32_t size;    // of the bin
  uint32_t above;   // candidates in higher bins, in the parts before this CTA's
  uint32_t inside;  // candidates in the bin, in the parts before this CTA's
};

// Histograms and sums of a round are read by the other CTAs until the next round's barrier.
struct Shared {
  union {
    uint32_t keys[kMostKeys];                     // select_threshold.cuh
    const std::byte* sample_pages[kSamplePages];  // until there is a bound
  };
  float queries[kMostQueryValues];
  uint32_t histograms[2][selection::kBins];
  uint32_t group_sums[2][selection::kGroups];  // of this CTA's histograms
  union {
    const std::byte* pages[kPartPages];
    uint32_t
        selected[kPartTokens / kWarpThreads];  // a bit per token of the part, when all are scored
  };
  uint32_t totals[2 * kWarps];
  uint32_t candidates;
  Found found;
  Part part;  // registers are for the sums

  // Of candidates behind the keys: the lower 16 bits of their tokens, then the upper 8.
  __device__ void Keep(uint32_t at, uint32_t key, uint32_t token) {
    auto* lows = reinterpret_cast<uint16_t*>(keys + kCandidates);
    auto* highs = reinterpret_cast<uint8_t*>(lows + kCandidates);
    keys[at] = key;
    lows[at] = static_cast<uint16_t>(token);
    highs[at] = static_cast<uint8_t>(token >> 16);
  }
  __device__ uint32_t Token(uint32_t at) const {
    const auto* lows = reinterpret_cast<const uint16_t*>(keys + kCandidates);
    const auto* highs = reinterpret_cast<const uint8_t*>(lows + kCandidates);
    return lows[at] | static_cast<uint32_t>(highs[at]) << 16;
  }
};
static_assert(kCandidates - kFull >= kWarps * kCutTokens);
static_assert(kCandidates * (sizeof(uint32_t) + 3) <= kMostKeys * sizeof(uint32_t));
// With GatherQueries' norms and what the device keeps for itself.
static_assert(kCtasPerMultiprocessor * (sizeof(Shared) + kMaxGroup * sizeof(float) + 1024) <=
              228 << 10);

// REQUIRES: more tokens than the always-set has, at most ctas x kPartTokens.
__device__ inline Part CutRow(const Job& job, const Item& item, uint32_t kv_head, uint32_t rank) {
  const uint32_t row_end = item.tokens - (kRecentTokens + 1);
  const uint32_t cuts = (row_end + kCutTokens - 1) / kCutTokens;
  const uint32_t cuts_of_part = (cuts + job.rows_done.ctas - 1) / job.rows_done.ctas;
  const uint32_t first_cut = min(rank * cuts_of_part, cuts);
  Part part;
  part.first = first_cut * kCutTokens;
  part.tokens = min(cuts_of_part, cuts - first_cut) * kCutTokens;
  part.skip = part.first == 0 ? kSinkTokens : 0;
  part.end = row_end > part.first ? row_end - part.first : 0;
  part.want = item.count - AlwaysSetSize(item.tokens);
  part.pages = item.labels.pages + part.first / kBlockTokens;
  part.page_offset = item.labels.layer_offset + uint64_t{kv_head} * item.labels.head_stride;
  part.to = item.selection + kv_head * item.selection_stride + kSinkTokens;
  part.first_query = (uint64_t{item.query} * job.kv_heads + kv_head) * job.group;
  part.kv_head = kv_head;
  part.competing = row_end - kSinkTokens;
  part.sampled = cuts_of_part * kCutTokens > kMostKeys;
  return part;
}

// Tokens from the part's first to the last that competes.
__device__ inline uint32_t TokensInUse(const Part& part) { return min(part.tokens, part.end); }

// The part's pages; it is not empty. Where a page would lie beyond the last that competes, it is
// that one's. Complete after a barrier.
__device__ inline void ListPages(const Part& part, Shared& shared) {
  const auto* pages = reinterpret_cast<const unsigned long long*>(part.pages);
  const uint32_t last = (TokensInUse(part) - 1) / kBlockTokens;
#pragma unroll 4
  for (uint32_t i = threadIdx.x; i < part.tokens / kBlockTokens; i += kThreads) {
    shared.pages[i] =
        reinterpret_cast<const std::byte*>(__ldg(pages + min(i, last))) + part.page_offset;
  }
}

__device__ inline bool Competes(const Part& part, uint32_t token) {
  return token >= part.skip && token < part.end;
}

// Whether of kCutTokens from there on, or fewer, some may not compete.
__device__ inline bool AtAnEnd(const Part& part, uint32_t first) {
  return first < kCutTokens || first + kCutTokens >= part.tokens;
}

}  // namespace sparsekv::cuda::fused
