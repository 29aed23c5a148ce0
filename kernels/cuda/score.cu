#include <bit>
#include <cmath>
#include <vector>

#include "base/check.h"
#include "kernels/cuda/begin_kernel.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/score_lane.cuh"
#include "kernels/cuda/score_part.cuh"

// Scores of label pages. Bound by the labels' bytes: 2 x channels in, 4 out per token and KV head.
//
// A warp's unit of work is 4 pages of one KV head of an item: 8 tokens per lane, read 16 bytes (a
// channel of 8 tokens) at a time, up to eight of them on their way at any time: as soon as a
// channel is widened its registers are loaded with what comes next. A label is read once for all
// query heads of the group, up to 8 of them; for more, once per 8 heads, from the caches.
//
// Units lie in one line: items, in them KV heads, in them pages. Every CTA has an equal part of the
// line, so whatever the batch, few CTAs have to fetch another head's query on their way.
//
// Multiplications and additions are written as intrinsics: the compiler must not fuse them, as the
// scores have to have the reference's bits. What a token's score is depends on no other token; of
// the softmax's sums, on its place in the item alone.
namespace sparsekv::cuda {
namespace {

using namespace scoring;

// What a kernel makes of the heads' scores: the maximum or the sum as the job says, or one of the
// softmax's two passes, with a merge between them.
enum class Make : uint8_t { kPooled, kPartials, kMass };

// Query heads that share a label in registers. Pooled, kernels of fewer take groups that small
// only.
constexpr uint32_t kMostHeads = 8;

// CTAs of a multiprocessor: registers for 8 x heads sums, 32 of labels and what else there is.
template <uint32_t kHeads>
constexpr uint32_t kCtas = kHeads == kMostHeads ? 3 : 4;

// The highest score of the unit's `valid` first tokens and the sum over them, in one order.
__device__ Normaliser UnitNormaliser(const float (&sums)[kLaneTokens], uint32_t valid) {
  const uint32_t first = LaneId() * kLaneTokens;
  float highest = -INFINITY;
#pragma unroll
  for (uint32_t t = 0; t < kLaneTokens; ++t) {
    if (first + t < valid) highest = fmaxf(highest, sums[t]);
  }
#pragma unroll
  for (uint32_t step = kWarpThreads / 2; step > 0; step /= 2) {
    highest = fmaxf(highest, __shfl_xor_sync(kWholeWarp, highest, step));
  }
  float sum = 0;
#pragma unroll
  for (uint32_t t = 0; t < kLaneTokens; ++t) {
    if (first + t < valid) sum += expf(sums[t] - highest);
  }
  return {highest, WarpSum(sum)};
}

// What becomes of the unit's scores by query heads [first_head, first_head + kHeads).
template <uint32_t kHeads, Make kMake>
__device__ void Pool(const ScoreJob& job, const Part& part, uint32_t unit, uint32_t first_head,
                     float (&sums)[kHeads][kLaneTokens], float (&pooled)[kLaneTokens]) {
#pragma unroll
  for (uint32_t h = 0; h < kHeads; ++h) {
    const uint32_t g = first_head + h;
    if (g >= job.group) break;
    if constexpr (kMake == Make::kPartials) {
      const Normaliser partial = UnitNormaliser(sums[h], part.tokens - unit * kUnitTokens);
      if (LaneId() == 0) job.partials[uint64_t{part.first_unit + unit} * job.group + g] = partial;
      continue;
    }
    if constexpr (kMake == Make::kMass) {
      const Normaliser all = job.normalisers[uint64_t{part.head} * job.group + g];
#pragma unroll
      for (float& score : sums[h]) score = expf(score - all.highest) * all.sum;
    }
    if (g == 0) {
#pragma unroll
      for (uint32_t t = 0; t < kLaneTokens; ++t) pooled[t] = sums[h][t];
    } else {
      PoolHead(job.pooling, sums[h], pooled);
    }
  }
}

// Stores the unit's scores 32 neighbours at a time: rows may begin at any float.
__device__ void StoreUnit(const Part& part, uint32_t unit, const float (&pooled)[kLaneTokens]) {
  __shared__ float4 stage[kWarps][kUnitTokens / 4];
  float4* warp_stage = stage[WarpId()];
  warp_stage[2 * LaneId()] = make_float4(pooled[0], pooled[1], pooled[2], pooled[3]);
  warp_stage[2 * LaneId() + 1] = make_float4(pooled[4], pooled[5], pooled[6], pooled[7]);
  __syncwarp();
  const uint32_t first = unit * kUnitTokens + LaneId();
  float* to = part.scores + first;
  const float* from = reinterpret_cast<const float*>(warp_stage) + LaneId();
#pragma unroll
  for (uint32_t i = 0; i < kUnitTokens; i += kWarpThreads) {
    if (first + i < part.tokens) to[i] = from[i];
  }
  __syncwarp();
}

template <uint32_t kHeads, uint32_t kChannels, Make kMake>
__device__ void ScorePart(const ScoreJob& job, const Part& part, float* queries) {
  constexpr bool kOneBlock = kMake == Make::kPooled && kHeads < kMostHeads;
  // Pages' addresses are read two units ahead of their labels' use, so that nothing waits for them.
  const std::byte* labels = LaneLabels(part, part.begin + WarpId());
  const std::byte* next = LaneLabels(part, part.begin + WarpId() + kWarps);
  uint4 words[kChannels] = {};
#pragma unroll
  for (uint32_t i = 0; i < kChannels; ++i) LoadUnlessNull(labels, i, words[i]);
  GatherQueries<kHeads>(job, part, queries);
#pragma unroll 1
  for (uint32_t unit = part.begin + WarpId(); unit < part.end; unit += kWarps) {
    const std::byte* after = LaneLabels(part, unit + 2 * kWarps);
    const auto* query = reinterpret_cast<const HeadValues<kHeads>*>(queries);
    float pooled[kLaneTokens];
#pragma unroll 1
    for (uint32_t block = 0; block < (kOneBlock ? 1 : job.group); block += kHeads) {
      float sums[kHeads][kLaneTokens] = {};
#pragma unroll 1
      for (uint32_t c = 0; c < job.channels; c += kChannels, query += kChannels) {
        // What is loaded meanwhile: the next channels, the first ones again, those of the next
        // unit.
        const bool more = c + kChannels < job.channels;
        const std::byte* from = more || (!kOneBlock && block + kHeads < job.group) ? labels : next;
        if (more && from) from += (c + kChannels) * kChannelBytes;
#pragma unroll
        for (uint32_t i = 0; i < kChannels; ++i) {
          float label[kLaneTokens];
          Widen(words[i], label);
          LoadUnlessNull(from, i, words[i]);
          AddChannel<kHeads>(label, query[i], sums);
        }
      }
      Pool<kHeads, kMake>(job, part, unit, block, sums, pooled);
    }
    if constexpr (kMake != Make::kPartials) StoreUnit(part, unit, pooled);
    labels = next;
    next = after;
  }
}

// The CTA's units, part by part. kChannels divides the number of channels.
template <uint32_t kHeads, uint32_t kChannels, Make kMake>
__global__ void __launch_bounds__(kThreads, kCtas<kHeads>) ScoreKernel(const ScoreJob job) {
  BeginKernel();
  extern __shared__ float4 queries[];
  __shared__ Part part;
  const ScoreItem& last = job.items[job.item_count - 1];
  const uint64_t units = last.first_unit + uint64_t{job.kv_heads} * last.head_units;
  auto unit = static_cast<uint32_t>(units * blockIdx.x / gridDim.x);
  const auto end = static_cast<uint32_t>(units * (blockIdx.x + 1) / gridDim.x);
  while (unit < end) {
    FindPart(job, unit, end, &part);
    ScorePart<kHeads, kChannels, kMake>(job, part, reinterpret_cast<float*>(queries));
    unit = part.first_unit + part.end;
  }
}

// The units' partial normalisers into one per query head, a warp each: a CTA per (item, KV head).
__global__ void MergeKernel(const ScoreJob job) {
  BeginKernel();
  const ScoreItem& item = job.items[blockIdx.x / job.kv_heads];
  const uint32_t kv_head = blockIdx.x % job.kv_heads;
  const uint64_t first_unit = item.first_unit + kv_head * item.head_units;
  for (uint32_t g = WarpId(); g < job.group; g += kWarps) {
    const Normaliser* partials = job.partials + first_unit * job.group + g;
    float highest = -INFINITY;
    for (uint32_t unit = LaneId(); unit < item.head_units; unit += kWarpThreads) {
      highest = fmaxf(highest, partials[uint64_t{unit} * job.group].highest);
    }
#pragma unroll
    for (uint32_t step = kWarpThreads / 2; step > 0; step /= 2) {
      highest = fmaxf(highest, __shfl_xor_sync(kWholeWarp, highest, step));
    }
    double sum = 0;
    for (uint32_t unit = LaneId(); unit < item.head_units; unit += kWarpThreads) {
      const Normaliser partial = partials[uint64_t{unit} * job.group];
      sum += double{partial.sum} * double{expf(partial.highest - highest)};
    }
    sum = WarpSum(sum);
    if (LaneId() == 0) {
      job.normalisers[blockIdx.x * job.group + g] = {highest, static_cast<float>(1 / sum)};
    }
  }
}

template <uint32_t kHeads, uint32_t kChannels, Make kMake>
void LaunchScore(const ScoreJob& job, Tape& tape) {
  const auto ctas = static_cast<uint32_t>(tape.multiprocessors()) * kCtas<kHeads>;
  const size_t heads = (job.group + kHeads - 1) / kHeads * kHeads;
  tape.Launch(ScoreKernel<kHeads, kChannels, kMake>, dim3(ctas), dim3(kThreads),
              heads * job.channels * sizeof(float), job);
}

template <uint32_t kChannels>
void LaunchPooled(const ScoreJob& job, Tape& tape) {
  if (job.group == 1) return LaunchScore<1, kChannels, Make::kPooled>(job, tape);
  if (job.group <= 4) return LaunchScore<4, kChannels, Make::kPooled>(job, tape);
  LaunchScore<kMostHeads, kChannels, Make::kPooled>(job, tape);
}

template <uint32_t kChannels>
void LaunchSoftmax(const ScoreJob& job, Tape& tape) {
  LaunchScore<4, kChannels, Make::kPartials>(job, tape);
  tape.Launch(MergeKernel, dim3(job.item_count * job.kv_heads), dim3(kThreads), 0, job);
  LaunchScore<4, kChannels, Make::kMass>(job, tape);
}

// Channels are taken by as many as divide them: 8, 4, else one by one, which is slow.
void Launch(const ScoreJob& job, Tape& tape) {
  if (job.pooling == Pooling::kSoftmaxMass) {
    return job.channels % 4 == 0 ? LaunchSoftmax<4>(job, tape) : LaunchSoftmax<1>(job, tape);
  }
  if (job.channels % 8 == 0) return LaunchPooled<8>(job, tape);
  if (job.channels % 4 == 0) return LaunchPooled<4>(job, tape);
  LaunchPooled<1>(job, tape);
}

}  // namespace

void ScoreLabels(const ScoreLabelsArgs& args, Tape& tape) {
  if (args.items.empty()) return;
  CHECK_LE(args.group, kMaxGroup);
  const uint32_t channels = args.items.front().labels.layout->channels;
  std::vector<ScoreItem> items;
  uint64_t units = 0;
  for (const ScoreLabelsArgs::Item& item : args.items) {
    CHECK_EQ(item.labels.layout->kv_heads, args.kv_heads);
    CHECK_EQ(item.labels.layout->channels, channels);
    const uint32_t head_units = (item.tokens + kUnitTokens - 1) / kUnitTokens;
    items.push_back({ViewOf(item.labels), item.scores, args.score_stride, item.query, item.tokens,
                     static_cast<uint32_t>(units), head_units});
    units += uint64_t{args.kv_heads} * head_units;
  }
  CHECK_LE(units, uint64_t{UINT32_MAX});
  ScoreJob job = {.items = tape.Params(items),
                  .q = args.q,
                  .channel_list = args.channels,
                  .normalisers = nullptr,
                  .partials = nullptr,
                  .item_count = static_cast<uint32_t>(items.size()),
                  .kv_heads = args.kv_heads,
                  .group = args.group,
                  .head_dim = args.head_dim,
                  .channels = channels,
                  .pooling = args.pooling,
                  .zeros = {}};
  if (args.pooling == Pooling::kSoftmaxMass) {
    // In powers of two, so that a growing context seldom needs another buffer, and another graph.
    const size_t heads = items.size() * args.kv_heads * args.group;
    const size_t partials = std::bit_ceil(units * args.group);
    auto* normalisers =
        reinterpret_cast<Normaliser*>(tape.Scratch((heads + partials) * sizeof(Normaliser)));
    job.normalisers = normalisers;
    job.partials = normalisers + heads;
  }
  Launch(job, tape);
}

}  // namespace sparsekv::cuda
