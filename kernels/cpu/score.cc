#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/score.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "kernels/cpu/operations.h"
#include "kernels/cpu/score_plan.h"
#include "kernels/cpu/vector-inl.h"

// Scores of label pages: SIMD over the 64 tokens of a page, one query head after the other.
// Products are rounded before they are added (labels.h), so there is no fused multiply-add here.
HWY_BEFORE_NAMESPACE();
namespace sparsekv::cpu::HWY_NAMESPACE {
namespace {

constexpr size_t kPageVectors = kBlockTokens / kLanes;
// Vectors of a page that are summed together: several, so that the additions overlap.
constexpr size_t kStrip = 4;
static_assert(kPageVectors % kStrip == 0);

struct Strip {
  VF v[kStrip];
};

// s_h(t) of the strip's tokens.
HWY_INLINE Strip HeadScores(const hwy::bfloat16_t* HWY_RESTRICT labels, size_t channels,
                            const float* HWY_RESTRICT query) {
  const DF d;
  Strip sums;
#pragma GCC unroll 4
  for (size_t i = 0; i < kStrip; ++i) sums.v[i] = hn::Zero(d);
  for (size_t c = 0; c < channels; ++c) {
    const VF q = hn::Set(d, query[c]);
#pragma GCC unroll 4
    for (size_t i = 0; i < kStrip; ++i) {
      const VF label = LoadFloats(labels + c * kBlockTokens + i * kLanes);
      sums.v[i] = hn::Add(sums.v[i], hn::Mul(q, label));
    }
  }
  return sums;
}

// What query head g brings to the pool.
template <Pooling kPooling>
HWY_INLINE Strip HeadShare(const ScoreJob& job, const hwy::bfloat16_t* labels, size_t g) {
  const DF d;
  const size_t channels = job.item->labels.layout->channels;
  Strip share = HeadScores(labels, channels, job.query + g * channels);
  if constexpr (kPooling == Pooling::kSoftmaxMass) {
    const VF highest = hn::Set(d, job.normaliser[2 * g]);
    const VF inverse_sum = hn::Set(d, job.normaliser[2 * g + 1]);
#pragma GCC unroll 4
    for (size_t i = 0; i < kStrip; ++i) {
      share.v[i] = hn::Mul(Exp(hn::Sub(share.v[i], highest)), inverse_sum);
    }
  }
  return share;
}

template <Pooling kPooling>
HWY_INLINE Strip PooledScores(const ScoreJob& job, const hwy::bfloat16_t* labels) {
  Strip pooled = HeadShare<kPooling>(job, labels, 0);
  for (size_t g = 1; g < job.args->group; ++g) {
    const Strip share = HeadShare<kPooling>(job, labels, g);
#pragma GCC unroll 4
    for (size_t i = 0; i < kStrip; ++i) {
      pooled.v[i] = kPooling == Pooling::kMaxNormalised ? hn::Max(pooled.v[i], share.v[i])
                                                        : hn::Add(pooled.v[i], share.v[i]);
    }
  }
  return pooled;
}

template <Pooling kPooling>
void ScoreChunkPooled(const ScoreJob& job, uint32_t chunk) {
  const DF d;
  float* scores = job.item->scores + job.kv_head * job.args->score_stride;
  const uint32_t end = HWY_MIN(job.pages(), (chunk + 1) * kTaskPages);
  for (uint32_t page = chunk * kTaskPages; page < end; ++page) {
    const auto* labels =
        reinterpret_cast<const hwy::bfloat16_t*>(job.item->labels.Head(job.kv_head, page));
    const uint32_t first = page * kBlockTokens;
    const uint32_t valid = HWY_MIN(kBlockTokens, job.item->tokens - first);
    HWY_ALIGN float last_page[kBlockTokens];  // labels beyond the last token are undefined
    float* to = valid == kBlockTokens ? scores + first : last_page;
    for (size_t t = 0; t < kBlockTokens; t += kStrip * kLanes) {
      const Strip pooled = PooledScores<kPooling>(job, labels + t);
#pragma GCC unroll 4
      for (size_t i = 0; i < kStrip; ++i) hn::StoreU(pooled.v[i], d, to + t + i * kLanes);
    }
    if (valid < kBlockTokens) memcpy(scores + first, last_page, valid * sizeof(float));
  }
}

void ScoreChunk(const ScoreJob& job, uint32_t chunk) {
  switch (job.args->pooling) {
    case Pooling::kMaxNormalised:
      return ScoreChunkPooled<Pooling::kMaxNormalised>(job, chunk);
    case Pooling::kSum:
      return ScoreChunkPooled<Pooling::kSum>(job, chunk);
    case Pooling::kSoftmaxMass:
      return ScoreChunkPooled<Pooling::kSoftmaxMass>(job, chunk);
  }
}

// The maximum and the sum of exp(s - maximum) of one query head over a chunk's tokens.
void NormaliseHead(const ScoreJob& job, uint32_t chunk, size_t g, float* partial) {
  const DF d;
  const size_t channels = job.item->labels.layout->channels;
  const VF lowest = hn::Set(d, -HUGE_VALF);
  const VF lane_index = hn::Iota(d, 0);
  VF highest = lowest;
  VF total = hn::Zero(d);
  const uint32_t end = HWY_MIN(job.pages(), (chunk + 1) * kTaskPages);
  for (uint32_t page = chunk * kTaskPages; page < end; ++page) {
    const auto* labels =
        reinterpret_cast<const hwy::bfloat16_t*>(job.item->labels.Head(job.kv_head, page));
    const auto valid =
        static_cast<float>(HWY_MIN(kBlockTokens, job.item->tokens - page * kBlockTokens));
    for (size_t t = 0; t < kBlockTokens; t += kStrip * kLanes) {
      Strip scores = HeadScores(labels + t, channels, job.query + g * channels);
      VF higher = highest;
#pragma GCC unroll 4
      for (size_t i = 0; i < kStrip; ++i) {
        const VF token = hn::Add(lane_index, hn::Set(d, static_cast<float>(t + i * kLanes)));
        scores.v[i] = hn::IfThenElse(hn::Lt(token, hn::Set(d, valid)), scores.v[i], lowest);
        higher = hn::Max(higher, scores.v[i]);
      }
      // Lanes that have seen no token yet stay at minus infinity with a sum of zero.
      const auto seen = hn::Gt(higher, lowest);
      total = hn::Mul(total, hn::IfThenElseZero(seen, Exp(hn::Sub(highest, higher))));
#pragma GCC unroll 4
      for (size_t i = 0; i < kStrip; ++i) {
        const VF mass = Exp(hn::Sub(scores.v[i], higher));
        total = hn::Add(total, hn::IfThenElseZero(seen, mass));
      }
      highest = higher;
    }
  }
  // Over the lanes.
  const float maximum = hn::GetLane(hn::MaxOfLanes(d, highest));
  const VF weight = Exp(hn::Sub(highest, hn::Set(d, maximum)));
  partial[0] = maximum;
  partial[1] = Sum(hn::Mul(total, weight));
}

void NormaliseChunk(const ScoreJob& job, uint32_t chunk) {
  const size_t group = job.args->group;
  for (size_t g = 0; g < group; ++g) {
    NormaliseHead(job, chunk, g, job.partials + (chunk * group + g) * 2);
  }
}

}  // namespace
}  // namespace sparsekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sparsekv::cpu {
namespace {

HWY_EXPORT(ScoreChunk);
HWY_EXPORT(NormaliseChunk);

// The job's query heads on the label channels, scaled for the pooling. Spelled like the reference:
// the scores must agree with it to the bit.
void GatherQuery(const ScoreJob& job, float* query) {
  const ScoreLabelsArgs& args = *job.args;
  const size_t channels = job.item->labels.layout->channels;
  const uint16_t* channel = args.channels + job.kv_head * channels;
  for (size_t g = 0; g < args.group; ++g) {
    const size_t head = (size_t{job.item->query} * args.kv_heads + job.kv_head) * args.group + g;
    float squares = 0;
    for (size_t c = 0; c < channels; ++c) {
      query[c] = args.q[head * args.head_dim + channel[c]];
      squares = squares + query[c] * query[c];
    }
    const float norm = std::sqrt(squares);
    for (size_t c = 0; c < channels; ++c) {
      if (args.pooling == Pooling::kMaxNormalised) query[c] = norm == 0 ? 0 : query[c] / norm;
      if (args.pooling == Pooling::kSoftmaxMass) {
        query[c] /= std::sqrt(static_cast<float>(args.head_dim));
      }
    }
    query += channels;
  }
}

// Merges the chunks' partial normalisers in order.
void MergeNormalisers(const ScoreJob& job, float* normaliser) {
  const size_t group = job.args->group;
  for (size_t g = 0; g < group; ++g) {
    double maximum = -HUGE_VAL;
    double sum = 0;
    for (size_t chunk = 0; chunk < job.chunks(); ++chunk) {
      const float* partial = job.partials + (chunk * group + g) * 2;
      const double higher = partial[0] > maximum ? double{partial[0]} : maximum;
      sum = sum * std::exp(maximum - higher) + partial[1] * std::exp(partial[0] - higher);
      maximum = higher;
    }
    normaliser[2 * g] = static_cast<float>(maximum);
    normaliser[2 * g + 1] = static_cast<float>(1 / sum);
  }
}

}  // namespace

void ScoreLabels(const ScoreLabelsArgs& args, Context& context) {
  // One job per (item, KV head), one task per chunk of its pages.
  struct Task {
    uint32_t job;
    uint32_t chunk;
  };
  std::vector<ScoreJob> jobs;
  std::vector<Task> tasks;
  size_t floats = 0;
  for (const ScoreLabelsArgs::Item& item : args.items) {
    CHECK_EQ(item.labels.layout->kv_heads, args.kv_heads);
    for (uint32_t kv_head = 0; kv_head < args.kv_heads; ++kv_head) {
      jobs.push_back({.args = &args, .item = &item, .kv_head = kv_head});
      const uint32_t chunks = jobs.back().chunks();
      for (uint32_t chunk = 0; chunk < chunks; ++chunk) {
        tasks.push_back({static_cast<uint32_t>(jobs.size() - 1), chunk});
      }
      floats += args.group * (size_t{item.labels.layout->channels} + 2 + 2 * size_t{chunks});
    }
  }
  float* free = context.shared.Get(0, floats);
  std::vector<float*> normalisers;
  for (ScoreJob& job : jobs) {
    GatherQuery(job, free);
    job.query = free;
    free += args.group * size_t{job.item->labels.layout->channels};
    job.normaliser = free;
    normalisers.push_back(free);
    free += size_t{2} * args.group;
    job.partials = free;
    free += size_t{2} * args.group * job.chunks();
  }
  const auto count = static_cast<uint32_t>(tasks.size());
  if (args.pooling == Pooling::kSoftmaxMass) {
    const auto normalise = HWY_DYNAMIC_DISPATCH(NormaliseChunk);
    context.pool.Run(count,
                     [&](uint32_t i, unsigned) { normalise(jobs[tasks[i].job], tasks[i].chunk); });
    for (size_t i = 0; i < jobs.size(); ++i) MergeNormalisers(jobs[i], normalisers[i]);
  }
  const auto score = HWY_DYNAMIC_DISPATCH(ScoreChunk);
  context.pool.Run(count, [&](uint32_t i, unsigned) { score(jobs[tasks[i].job], tasks[i].chunk); });
}

}  // namespace sparsekv::cpu
#endif  // HWY_ONCE
