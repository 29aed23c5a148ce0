#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "base/limits.h"
#include "kernels/cuda/cta.cuh"
#include "kernels/cuda/score_part.cuh"
#include "kernels/cuda/select_threshold.cuh"
#include "kernels/cuda/tables.cuh"
#include "kernels/labels.h"
#include "kernels/select.h"

// A row: the tokens that a KV head of an item selects from. How a cluster cuts it, and what its
// CTAs keep of their parts.
namespace sparsekv::cuda::fused {

inline constexpr uint32_t kThreads = selection::kClusterThreads;
inline constexpr uint32_t kWarps = kThreads / kWarpThreads;
// CTAs of a multiprocessor: what its shared memory has room for, and 64 registers a thread.
inline constexpr uint32_t kCtasPerMultiprocessor = 2;

inline constexpr uint32_t kCutTokens = 128;  // parts end at multiples of these
// 8 CTAs: a context of 176K tokens. Two CTAs of this size fit into a multiprocessor.
inline constexpr uint32_t kCachedTokens = 172 * kCutTokens;
inline constexpr uint32_t kCachedPages = kCachedTokens / kBlockTokens;
inline constexpr uint32_t kMostQueryValues = 1280;  // of a row: query heads times channels, codes
inline constexpr uint32_t kLineBytes = 128;         // that L2 is asked for at once

struct Item {
  LabelsView labels;
  float* scores;  // for the keys that find no room in shared memory
  uint32_t* selection;
  uint64_t score_stride;
  uint64_t selection_stride;
  uint32_t query;
  uint32_t tokens;
  uint32_t count;
};

// By value: no padding, as its bytes are part of the step's shape.
struct Job {
  const Item* items;
  const float* q;
  const uint16_t* channel_list;
  uint32_t rows;  // of all items
  uint32_t kv_heads;
  uint32_t group;
  uint32_t head_dim;
  uint32_t channels;
  uint32_t words;         // of a label's codes
  uint32_t lines;         // of a page's labels of a KV head
  uint32_t rows_at_once;  // that the device has room for, about
  Pooling pooling;
  uint8_t bits;  // of a code
  uint8_t zeros[6];
};
static_assert(std::has_unique_object_representations_v<Job>);

// The tokens of a CTA, counted from its first.
struct Part {
  std::byte* const* pages;  // from the part's first
  uint64_t page_offset;
  uint32_t* spilled;     // keys beyond kCachedTokens, aligned to 16 bytes
  uint32_t* to;          // where the row's selected tokens are listed, but for the always-set
  uint64_t first_query;  // row of q
  uint32_t kv_head;
  uint32_t first;   // token of the row
  uint32_t tokens;  // in whole kCutTokens
  uint32_t skip;    // tokens that do not compete
  uint32_t end;     // of those that do; 0 when there are none
  uint32_t want;    // how many of the row's are selected
};

// What is known of the last selected key after a round of the search.
struct Found {
  uint32_t bin;
  uint32_t rank;    // of the key in its bin, from 1, the highest first
  uint32_t size;    // of the bin
  uint32_t above;   // keys in higher bins, in the parts before this CTA's
  uint32_t inside;  // keys in the bin, in the parts before this CTA's
};

// Histograms and sums of a round are read by the other CTAs until the next round's barrier.
struct Shared {
  uint4 keys[kCachedTokens / 4];
  float queries[kMostQueryValues];
  uint32_t histograms[2][selection::kBins];
  uint32_t group_sums[2][selection::kGroups];  // of this CTA's histograms
  const std::byte* pages[kCachedPages];        // of kCachedTokens at a time
  uint64_t warp_totals[kWarps];
  Found found;
  Part part;  // registers are for the sums
};
// With GatherQueries' norms and what the device keeps for itself.
static_assert(kCtasPerMultiprocessor * (sizeof(Shared) + kMaxGroup * sizeof(float) + 1024) <=
              228 << 10);

// REQUIRES: more tokens than the always-set has. Spilled keys lie in the row's scores, at their
// token's place or up to three places before it: nothing is written beyond the last that competes.
template <typename Team>
__device__ Part CutRow(const Job& job, const Item& item, uint32_t kv_head) {
  const uint32_t row_end = item.tokens - (kRecentTokens + 1);
  const uint32_t cuts = (row_end + kCutTokens - 1) / kCutTokens;
  const uint32_t cuts_of_part = (cuts + Team::kSize - 1) / Team::kSize;
  const uint32_t first_cut = min(Team::Rank() * cuts_of_part, cuts);
  Part part;
  part.first = first_cut * kCutTokens;
  part.tokens = min(cuts_of_part, cuts - first_cut) * kCutTokens;
  part.skip = part.first == 0 ? kSinkTokens : 0;
  part.end = row_end > part.first ? row_end - part.first : 0;
  part.want = item.count - AlwaysSetSize(item.tokens);
  part.pages = item.labels.pages + part.first / kBlockTokens;
  part.page_offset = item.labels.layer_offset + uint64_t{kv_head} * item.labels.head_stride;
  const auto scores = reinterpret_cast<uintptr_t>(item.scores + kv_head * item.score_stride);
  part.spilled = reinterpret_cast<uint32_t*>(scores / sizeof(uint4) * sizeof(uint4)) + part.first;
  part.to = item.selection + kv_head * item.selection_stride + kSinkTokens;
  part.first_query = (uint64_t{item.query} * job.kv_heads + kv_head) * job.group;
  part.kv_head = kv_head;
  return part;
}

__device__ inline void BringToL2(const std::byte* line) {
  asm volatile("prefetch.global.L2 [%0];" : : "l"(line));
}

// Tokens from the part's first to the last that competes.
__device__ inline uint32_t TokensInUse(const Part& part) { return min(part.tokens, part.end); }

__device__ inline const std::byte* LabelsOfPage(const Part& part, uint32_t page) {
  const auto* pages = reinterpret_cast<const unsigned long long*>(part.pages);
  return reinterpret_cast<const std::byte*>(__ldg(pages + page)) + part.page_offset;
}

// The pages of the tokens [from, from + kCachedTokens) of the part, which is not empty. Where a
// page would lie beyond the last that competes, it is that one's. The first `asked` of the pages
// are on their way to L2 when this returns. Complete after a barrier.
__device__ inline void BringPages(const Job& job, const Part& part, uint32_t from, uint32_t asked,
                                  Shared& shared) {
  const uint32_t last = (TokensInUse(part) - 1) / kBlockTokens;
  const uint32_t pages = min(part.tokens - from, kCachedTokens) / kBlockTokens;
  // From the last thread on: the first ones have the queries to gather.
  for (uint32_t i = kThreads - 1 - threadIdx.x; i < pages; i += kThreads) {
    const std::byte* labels = LabelsOfPage(part, min(from / kBlockTokens + i, last));
    shared.pages[i] = labels;
    if (i >= asked) continue;
#pragma unroll 1
    for (uint32_t line = 0; line < job.lines; ++line) BringToL2(labels + line * kLineBytes);
  }
}

__device__ inline bool Competes(const Part& part, uint32_t token) {
  return token >= part.skip && token < part.end;
}

// Calls f with the keys of all tokens that compete, and some of none, a vector at a time.
template <typename F>
__device__ void ForKeys(const Part& part, const Shared& shared, const F& f) {
  const uint32_t cached = min(part.tokens, kCachedTokens) / 4;
#pragma unroll 4
  for (uint32_t i = threadIdx.x; i < cached; i += kThreads) f(shared.keys[i]);
  const auto* spilled = reinterpret_cast<const uint4*>(part.spilled);
  const uint32_t end = (TokensInUse(part) + 3) / 4;
#pragma unroll 1
  for (uint32_t i = kCachedTokens / 4 + threadIdx.x; i < end; i += kThreads) f(__ldcg(spilled + i));
}

// The key of any token of the part, kNoKey beyond it.
__device__ inline uint32_t KeyOfToken(const Part& part, const Shared& shared, uint32_t token) {
  if (token >= part.tokens) return selection::kNoKey;
  if (token < kCachedTokens) return reinterpret_cast<const uint32_t*>(shared.keys)[token];
  return token < part.end ? __ldcg(part.spilled + token) : selection::kNoKey;
}

}  // namespace sparsekv::cuda::fused
