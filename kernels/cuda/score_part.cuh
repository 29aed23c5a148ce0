#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "base/limits.h"
#include "kernels/cuda/cta.cuh"
#include "kernels/cuda/tables.cuh"
#include "kernels/label_query.h"
#include "kernels/labels.h"

// How the work on label pages is cut, and what a CTA brings for its part of it.
namespace sparsekv::cuda::scoring {

inline constexpr uint32_t kWarps = 4;
inline constexpr uint32_t kThreads = kWarps * kWarpThreads;
inline constexpr uint32_t kLaneTokens = 8;  // 16 bytes of a channel
inline constexpr uint32_t kUnitTokens = kWarpThreads * kLaneTokens;
inline constexpr uint32_t kPageLanes = kBlockTokens / kLaneTokens;
inline constexpr uint32_t kChannelBytes = kBlockTokens * sizeof(uint16_t);  // of a page
inline constexpr uint32_t kUnitPages = kUnitTokens / kBlockTokens;
static_assert(kUnitPages * kBlockTokens == kUnitTokens);

struct ScoreItem {
  LabelsView labels;
  float* scores;
  uint64_t score_stride;
  uint32_t query;
  uint32_t tokens;
  uint32_t first_unit;
  uint32_t head_units;  // of one KV head
};

// The highest score of a query head, and with it the sum of exp(score - highest), or one over it.
struct Normaliser {
  float highest;
  float sum;
};

// By value: no padding, as its bytes are part of the step's shape.
struct ScoreJob {
  const ScoreItem* items;
  const float* q;
  const uint16_t* channel_list;
  Normaliser* normalisers;  // [items, kv_heads, group]
  Normaliser* partials;     // [units, group]
  uint32_t item_count;
  uint32_t kv_heads;
  uint32_t group;
  uint32_t head_dim;
  uint32_t channels;
  uint32_t words;  // of a label's codes
  Pooling pooling;
  uint8_t bits;  // of a code
  uint8_t zeros[6];
};
static_assert(std::has_unique_object_representations_v<ScoreJob>);

// A CTA's part of a KV head of an item. In shared memory: registers are for the sums.
struct Part {
  std::byte* const* pages;
  uint64_t page_offset;
  float* scores;
  uint64_t first_query;  // row of q
  uint32_t tokens;
  uint32_t kv_head;
  uint32_t head;        // of all items' KV heads
  uint32_t first_unit;  // of all items: the head's first
  uint32_t begin;       // units of the head, the part's first
  uint32_t end;
};

// The part that begins with unit `unit` of all and ends with the head, or before `end`.
__device__ inline void FindPart(const ScoreJob& job, uint32_t unit, uint32_t end, Part* part) {
  __syncthreads();  // the part before is no longer read
  for (uint32_t i = threadIdx.x; i < job.item_count; i += kThreads) {
    const ScoreItem& item = job.items[i];
    const uint32_t before = unit - item.first_unit;
    if (unit < item.first_unit || before >= job.kv_heads * item.head_units) continue;
    const uint32_t kv_head = before / item.head_units;
    const uint32_t first_unit = item.first_unit + kv_head * item.head_units;
    *part = {.pages = item.labels.pages,
             .page_offset = item.labels.layer_offset + uint64_t{kv_head} * item.labels.head_stride,
             .scores = item.scores + kv_head * item.score_stride,
             .first_query = (uint64_t{item.query} * job.kv_heads + kv_head) * job.group,
             .tokens = item.tokens,
             .kv_head = kv_head,
             .head = i * job.kv_heads + kv_head,
             .first_unit = first_unit,
             .begin = unit - first_unit,
             .end = min(end - first_unit, item.head_units)};
  }
  __syncthreads();
}

// Calls f(part) for the CTA's units, part by part; `part`: in shared memory.
template <typename F>
__device__ void ForParts(const ScoreJob& job, Part* part, const F& f) {
  const ScoreItem& last = job.items[job.item_count - 1];
  const uint64_t units = last.first_unit + uint64_t{job.kv_heads} * last.head_units;
  auto unit = static_cast<uint32_t>(units * blockIdx.x / gridDim.x);
  const auto end = static_cast<uint32_t>(units * (blockIdx.x + 1) / gridDim.x);
  while (unit < end) {
    FindPart(job, unit, end, part);
    f(*part);
    unit = part->first_unit + part->end;
  }
}

// The labels of the page of the lane's 8 tokens of the unit; null beyond the part and the item's
// pages.
__device__ inline const std::byte* LanePage(const Part& part, uint32_t unit) {
  const uint32_t page = unit * kUnitPages + LaneId() / kPageLanes;
  if (unit >= part.end || page * kBlockTokens >= part.tokens) return nullptr;
  return part.pages[page] + part.page_offset;
}

// The lane's tokens there, in channel 0.
__device__ inline const std::byte* LaneLabels(const Part& part, uint32_t unit) {
  const std::byte* page = LanePage(part, unit);
  return page ? page + LaneId() % kPageLanes * sizeof(uint4) : nullptr;
}

// Loads 8 tokens of a channel unless `from` is null; they are read once. One instruction without a
// branch: of branches the compiler makes one, and then all loads of what comes next stand together
// and take registers of their own.
__device__ inline void LoadUnlessNull(const std::byte* from, uint32_t channel, uint4& words) {
  asm volatile(
      "{\n"
      ".reg .pred given;\n"
      "setp.ne.u64 given, %4, 0;\n"
      "@given ld.global.cs.v4.u32 {%0, %1, %2, %3}, [%5];\n"
      "}"
      : "+r"(words.x), "+r"(words.y), "+r"(words.z), "+r"(words.w)
      : "l"(from), "l"(from + channel * kChannelBytes));
}

// The queries of the part's group on the label channels: queries[block][channel][kHeads], blocks of
// kHeads query heads, the first again for those that fill up the last. Scaled for the pooling, in
// the reference's order and with its roundings.
template <uint32_t kHeads, uint32_t kCtaThreads = kThreads, typename Job, typename HeadPart>
__device__ void GatherQueries(const Job& job, const HeadPart& part, float* queries) {
  static_assert(kMaxGroup % kHeads == 0);
  __shared__ float norms[kMaxGroup];
  const uint32_t heads = (job.group + kHeads - 1) / kHeads * kHeads;
  const auto at = [&](uint32_t g, uint32_t c) -> float& {
    return queries[(g / kHeads * job.channels + c) * kHeads + g % kHeads];
  };
  const uint16_t* list = job.channel_list + uint64_t{part.kv_head} * job.channels;
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < heads * job.channels; i += kCtaThreads) {
    const uint32_t g = i / job.channels;
    const uint32_t c = i % job.channels;
    const uint64_t query = part.first_query + (g < job.group ? g : 0);
    at(g, c) = job.q[query * job.head_dim + list[c]];
  }
  __syncthreads();
#pragma unroll 1
  for (uint32_t g = threadIdx.x; g < heads; g += kCtaThreads) {
    float squares = 0;
    for (uint32_t c = 0; c < job.channels; ++c) {
      squares = __fadd_rn(squares, __fmul_rn(at(g, c), at(g, c)));
    }
    norms[g] = __fsqrt_rn(job.pooling == Pooling::kSoftmaxMass ? job.head_dim : squares);
    if (job.pooling == Pooling::kSum) norms[g] = 1;
  }
  __syncthreads();
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < heads * job.channels; i += kCtaThreads) {
    const uint32_t g = i / job.channels;
    float& value = at(g, i % job.channels);
    value = LabelQuery(norms[g] == 0 ? 0.0f : __fdiv_rn(value, norms[g]));
  }
  __syncthreads();
}

}  // namespace sparsekv::cuda::scoring
