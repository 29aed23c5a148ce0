#include <bit>
#include <cmath>
#include <vector>

#include "base/check.h"
#include "kernels/cuda/begin_kernel.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/score_lane.cuh"
#include "kernels/cuda/score_part.cuh"
#include "kernels/cuda/score_pool.cuh"

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
// Products are exact (labels.h), so that fused multiply-adds have the reference's bits.
namespace sparsekv::cuda {
namespace {

using namespace scoring;

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
  __shared__ Part shared_part;
  ForParts(job, &shared_part, [&](const Part& part) {
    ScorePart<kHeads, kChannels, kMake>(job, part, reinterpret_cast<float*>(queries));
  });
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
  NoteMerge(job, tape);
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

void scoring::NoteMerge(const ScoreJob& job, Tape& tape) {
  tape.Launch(MergeKernel, dim3(job.item_count * job.kv_heads), dim3(kThreads), 0, job);
}

void ScoreLabels(const ScoreLabelsArgs& args, Tape& tape) {
  if (args.items.empty()) return;
  CHECK_LE(args.group, kMaxGroup);
  const LabelLayout& layout = *args.items.front().labels.layout;
  std::vector<ScoreItem> items;
  uint64_t units = 0;
  for (const ScoreLabelsArgs::Item& item : args.items) {
    CHECK_EQ(item.labels.layout->kv_heads, args.kv_heads);
    CHECK_EQ(item.labels.layout->channels, layout.channels);
    CHECK(item.labels.layout->format == layout.format);
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
                  .channels = layout.channels,
                  .words = layout.words(),
                  .pooling = args.pooling,
                  .bits = static_cast<uint8_t>(CodeBits(layout.format)),
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
  if (layout.coded()) return NoteCodedScores(job, tape);
  Launch(job, tape);
}

}  // namespace sparsekv::cuda
