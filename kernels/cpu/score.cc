#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/score.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "kernels/cpu/operations.h"
#include "kernels/cpu/score_plan.h"
#include "kernels/cpu/vector-inl.h"
#include "kernels/label_query.h"

// Scores of label pages: SIMD over the tokens of a page. A label is widened once for up to four
// query heads. Products are exact (labels.h), so that instruction sets with a fused multiply-add
// and those without agree.
HWY_BEFORE_NAMESPACE();
namespace sparsekv::cpu::HWY_NAMESPACE {
namespace {

using DU = hn::ScalableTag<uint32_t>;

// Tokens whose labels are in registers together: each vector of 32-bit words holds two tokens in a
// lane, which widen into a vector of the even and one of the odd tokens.
constexpr size_t kWordVectors = kManyRegisters ? 2 : 1;
constexpr size_t kStrip = 2 * kWordVectors;  // vectors of scores
constexpr size_t kStripTokens = kStrip * kLanes;
static_assert(kBlockTokens % kStripTokens == 0);

// v[2 i] and v[2 i + 1]: the even and the odd ones of the i-th 2 * kLanes tokens.
struct Strip {
  VF v[kStrip];
};

// shares[h] = s_h(t) of the strip's tokens, for a block of kHeads query heads.
template <size_t kHeads>
HWY_INLINE void HeadScores(const std::byte* HWY_RESTRICT labels, size_t channels,
                           const float* HWY_RESTRICT query, Strip* shares) {
  const DF d;
  const DU du;
  VF sums[kHeads][kStrip];
#pragma GCC unroll 4
  for (size_t h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (size_t i = 0; i < kStrip; ++i) sums[h][i] = hn::Zero(d);
  }
  const auto add = [&](size_t c) HWY_ATTR {
    const auto* words = reinterpret_cast<const uint32_t*>(labels + c * kBlockTokens * 2);
    VF label[kStrip];
#pragma GCC unroll 2
    for (size_t i = 0; i < kWordVectors; ++i) {
      const auto two = hn::LoadU(du, words + i * kLanes);
      label[2 * i] = hn::BitCast(d, hn::ShiftLeft<16>(two));
      label[2 * i + 1] = hn::BitCast(d, hn::And(two, hn::Set(du, 0xFFFF0000u)));
    }
#pragma GCC unroll 4
    for (size_t h = 0; h < kHeads; ++h) {
      const VF q = hn::Set(d, query[c * kHeads + h]);
#pragma GCC unroll 4
      for (size_t i = 0; i < kStrip; ++i) {
        sums[h][i] = hn::MulAdd(q, label[i], sums[h][i]);
      }
    }
  };
  constexpr size_t kAtOnce = 4;
  size_t c = 0;
  for (; c + kAtOnce <= channels; c += kAtOnce) {
#pragma GCC unroll 4
    for (size_t i = 0; i < kAtOnce; ++i) add(c + i);
  }
  for (; c < channels; ++c) add(c);
#pragma GCC unroll 4
  for (size_t h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (size_t i = 0; i < kStrip; ++i) shares[h].v[i] = sums[h][i];
  }
}

// Calls function.operator()<n>(head) for the blocks [head, head + n) of query heads, over
// [0, group).
template <typename Function>
HWY_INLINE void ByHeads(size_t group, const Function& function) {
  size_t g = 0;
  for (; g + kHeadsAtOnce <= group; g += kHeadsAtOnce) {
    function.template operator()<kHeadsAtOnce>(g);
  }
  switch (group - g) {
    case 3:
      return function.template operator()<3>(g);
    case 2:
      return function.template operator()<2>(g);
    case 1:
      return function.template operator()<1>(g);
  }
}

// The pooled scores of a page, all kBlockTokens of them. `normaliser`: of this KV head.
template <Pooling kPooling>
void ScorePage(const std::byte* labels, size_t channels, size_t group, const float* query,
               const float* normaliser, LabelLines& all_fetch, float* HWY_RESTRICT scores) {
  const DF d;
  LabelLines fetch = all_fetch;
  for (size_t t = 0; t < kBlockTokens; t += kStripTokens) {
    Strip pooled;
    fetch.Part(t / kStripTokens, kBlockTokens / kStripTokens, channels * kBlockTokens * 2);
    ByHeads(group, [&]<size_t kHeads>(size_t g) {
      Strip shares[kHeads];
      HeadScores<kHeads>(labels + t * 2, channels, query + g * channels, shares);
#pragma GCC unroll 4
      for (size_t h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
        for (size_t i = 0; i < kStrip; ++i) {
          VF share = shares[h].v[i];
          if constexpr (kPooling == Pooling::kSoftmaxMass) {
            const float* norm = normaliser + 2 * (g + h);
            share = hn::Mul(Exp(hn::Sub(share, hn::Set(d, norm[0]))), hn::Set(d, norm[1]));
          }
          if (g + h == 0) {
            pooled.v[i] = share;
          } else if constexpr (kPooling == Pooling::kMaxNormalised) {
            pooled.v[i] = hn::Max(pooled.v[i], share);
          } else {
            pooled.v[i] = hn::Add(pooled.v[i], share);
          }
        }
      }
    });
#pragma GCC unroll 2
    for (size_t i = 0; i < kWordVectors; ++i) {
      hn::StoreInterleaved2(pooled.v[2 * i], pooled.v[2 * i + 1], d, scores + t + i * 2 * kLanes);
    }
  }
  all_fetch = fetch;
}

template <Pooling kPooling>
void ScorePagesPooled(const ScoreJob& job, uint32_t begin, uint32_t end) {
  const ScoreLabelsArgs& args = *job.args;
  ForPages(job, begin, end, job.first_head, job.end_head, [&](uint32_t page, LabelLines& fetch) {
    const uint32_t skipped = job.Skipped(page), valid = job.Valid(page);
    const bool whole = skipped == 0 && valid == kBlockTokens;
    for (uint32_t kv_head = job.first_head; kv_head < job.end_head; ++kv_head) {
      float* scores = job.Scores(kv_head, page);
      HWY_ALIGN float part[kBlockTokens];  // labels beyond the last token are undefined
      ScorePage<kPooling>(job.item->labels.Head(kv_head, page), job.channels(), args.group,
                          job.Query(kv_head), job.normaliser + size_t{2} * kv_head * args.group,
                          fetch, whole ? scores : part);
      if (!whole) memcpy(scores + skipped, part + skipped, (valid - skipped) * sizeof(float));
    }
  });
}

void ScorePages(const ScoreJob& job, uint32_t begin, uint32_t end) {
  switch (job.args->pooling) {
    case Pooling::kMaxNormalised:
      return ScorePagesPooled<Pooling::kMaxNormalised>(job, begin, end);
    case Pooling::kSum:
      return ScorePagesPooled<Pooling::kSum>(job, begin, end);
    case Pooling::kSoftmaxMass:
      return ScorePagesPooled<Pooling::kSoftmaxMass>(job, begin, end);
  }
}

// The running maximum and sum of exp(s - maximum) of one query head, lane by lane.
struct Normaliser {
  VF highest;
  VF total;

  HWY_INLINE void Start() {
    highest = hn::Set(DF(), -HUGE_VALF);
    total = hn::Zero(DF());
  }

  // `first`: the strip's first token in its page, of which [skipped, valid) count.
  HWY_INLINE void Add(Strip scores, size_t first, uint32_t skipped, uint32_t valid) {
    const DF d;
    const VF lowest = hn::Set(d, -HUGE_VALF);
    if (first < skipped || first + kStripTokens > valid) {
      const VF begin = hn::Set(d, static_cast<float>(skipped));
      const VF end = hn::Set(d, static_cast<float>(valid));
      const VF two_lanes = hn::Add(hn::Iota(d, 0), hn::Iota(d, 0));
      for (size_t i = 0; i < kStrip; ++i) {
        const size_t token = first + i / 2 * 2 * kLanes + i % 2;
        const VF tokens = hn::Add(two_lanes, hn::Set(d, static_cast<float>(token)));
        const auto counts = hn::And(hn::Ge(tokens, begin), hn::Lt(tokens, end));
        scores.v[i] = hn::IfThenElse(counts, scores.v[i], lowest);
      }
    }
    VF higher = highest;
    for (size_t i = 0; i < kStrip; ++i) higher = hn::Max(higher, scores.v[i]);
    // Lanes that have seen no token yet stay at minus infinity with a sum of zero.
    const auto seen = hn::Gt(higher, lowest);
    total = hn::Mul(total, hn::IfThenElseZero(seen, Exp(hn::Sub(highest, higher))));
    for (size_t i = 0; i < kStrip; ++i) {
      total = hn::Add(total, hn::IfThenElseZero(seen, Exp(hn::Sub(scores.v[i], higher))));
    }
    highest = higher;
  }

  void Finish(float* partial) const {
    const DF d;
    const float maximum = hn::GetLane(hn::MaxOfLanes(d, highest));
    partial[0] = maximum;
    partial[1] = Sum(hn::Mul(total, Exp(hn::Sub(highest, hn::Set(d, maximum)))));
  }
};

void NormaliseChunk(const ScoreJob& job, uint32_t chunk) {
  const size_t group = job.args->group;
  const size_t channels = job.channels();
  for (uint32_t kv_head = 0; kv_head < job.args->kv_heads; ++kv_head) {
    float* partials = job.partials + (chunk * job.heads() + kv_head * group) * 2;
    ByHeads(group, [&]<size_t kHeads>(size_t g) {
      Normaliser heads[kHeads];
      for (Normaliser& head : heads) head.Start();
      const uint32_t begin = job.ChunkBegin(chunk), end = job.ChunkEnd(chunk);
      ForPages(job, begin, end, kv_head, kv_head + 1, [&](uint32_t page, LabelLines& fetch) {
        const std::byte* labels = job.item->labels.Head(kv_head, page);
        for (size_t t = 0; t < kBlockTokens; t += kStripTokens) {
          Strip shares[kHeads];
          fetch.Part(t / kStripTokens, kBlockTokens / kStripTokens, channels * kBlockTokens * 2);
          HeadScores<kHeads>(labels + t * 2, channels, job.Query(kv_head) + g * channels, shares);
          for (size_t h = 0; h < kHeads; ++h) {
            heads[h].Add(shares[h], t, job.Skipped(page), job.Valid(page));
          }
        }
      });
      for (size_t h = 0; h < kHeads; ++h) heads[h].Finish(partials + (g + h) * 2);
    });
  }
}

}  // namespace
}  // namespace sparsekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sparsekv::cpu {
namespace {

HWY_EXPORT(ScorePages);
HWY_EXPORT(NormaliseChunk);

// One KV head's query heads on the label channels, scaled for the pooling. Spelled like the
// reference: the scores must agree with it to the bit.
void GatherQuery(const ScoreJob& job, uint32_t kv_head, float* query) {
  const ScoreLabelsArgs& args = *job.args;
  const size_t channels = job.channels();
  const uint16_t* channel = args.channels + kv_head * channels;
  for (size_t g = 0; g < args.group; ++g) {
    const size_t head = (size_t{job.item->query} * args.kv_heads + kv_head) * args.group + g;
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
      query[c] = LabelQuery(query[c]);
    }
    query += channels;
  }
}

// job.query from [group, channels] into the blocks in which HeadScores reads it.
void InterleaveQueries(const ScoreJob& job) {
  const size_t channels = job.channels(), group = job.args->group;
  std::vector<float> block;
  for (float* query = job.query; query != job.query + job.heads() * channels;) {
    const size_t head = static_cast<size_t>(query - job.query) / channels % group;
    const size_t heads = std::min(group - head, kHeadsAtOnce);
    block.assign(query, query + heads * channels);
    for (size_t c = 0; c < channels; ++c) {
      for (size_t h = 0; h < heads; ++h) *query++ = block[h * channels + c];
    }
  }
}

// Merges the chunks' partial normalisers in order.
void MergeNormalisers(const ScoreJob& job) {
  for (size_t head = 0; head < job.heads(); ++head) {
    double maximum = -HUGE_VAL;
    double sum = 0;
    for (size_t chunk = 0; chunk < job.chunks(); ++chunk) {
      const float* partial = job.partials + (chunk * job.heads() + head) * 2;
      const double higher = partial[0] > maximum ? double{partial[0]} : maximum;
      sum = sum * std::exp(maximum - higher) + partial[1] * std::exp(partial[0] - higher);
      maximum = higher;
    }
    job.normaliser[2 * head] = static_cast<float>(maximum);
    job.normaliser[2 * head + 1] = static_cast<float>(1 / sum);
  }
}

}  // namespace

ScorePasses PassesOf(const ScoreLabelsArgs& args) {
  if (!args.items.empty() && args.items[0].labels.layout->coded()) return CodedPasses();
  return {HWY_DYNAMIC_DISPATCH(NormaliseChunk), HWY_DYNAMIC_DISPATCH(ScorePages)};
}

std::vector<ScoreJob> MakeScoreJobs(const ScoreLabelsArgs& args, Context& context) {
  const bool coded = !args.items.empty() && args.items[0].labels.layout->coded();
  std::vector<ScoreJob> jobs;
  size_t floats = 0;
  for (const ScoreLabelsArgs::Item& item : args.items) {
    CHECK_EQ(item.labels.layout->kv_heads, args.kv_heads);
    CHECK_EQ(item.labels.layout->coded(), coded);
    jobs.push_back({.args = &args,
                    .item = &item,
                    .end_head = args.kv_heads,
                    .scores = item.scores,
                    .score_stride = args.score_stride});
    ScoreJob& job = jobs.back();
    job.fetch_end = job.pages();
    floats +=
        job.heads() * (size_t{job.channels()} + job.code_words() + 2 + 2 * size_t{job.chunks()});
  }
  float* free = context.shared.Get(0, floats);
  for (ScoreJob& job : jobs) {
    job.query = free;
    job.normaliser = job.query + job.heads() * job.channels();
    job.partials = job.normaliser + 2 * job.heads();
    free = job.partials + 2 * job.heads() * job.chunks();
    job.codes = reinterpret_cast<uint32_t*>(free);
    free += job.heads() * job.code_words();
    for (uint32_t kv_head = 0; kv_head < args.kv_heads; ++kv_head) {
      GatherQuery(job, kv_head, job.query + size_t{kv_head} * args.group * job.channels());
    }
    if (coded) {
      CodeQueries(job);
    } else {
      InterleaveQueries(job);
    }
  }
  return jobs;
}

void ScoreLabels(const ScoreLabelsArgs& args, Context& context) {
  const std::vector<ScoreJob> jobs = MakeScoreJobs(args, context);
  struct Task {
    uint32_t job;
    uint32_t begin;  // chunk or page
    uint32_t end;
  };
  std::vector<Task> tasks;
  const auto run = [&](const auto& pass) {
    context.pool.Run(static_cast<uint32_t>(tasks.size()), [&](uint32_t i, unsigned) {
      ScoreJob job = jobs[tasks[i].job];
      pass(job, tasks[i]);
    });
  };
  const ScorePasses passes = PassesOf(args);
  if (args.pooling == Pooling::kSoftmaxMass) {
    for (uint32_t job = 0; job < jobs.size(); ++job) {
      for (uint32_t c = 0; c < jobs[job].chunks(); ++c) tasks.push_back({job, c, c + 1});
    }
    run([&](ScoreJob& job, const Task& task) {
      job.fetch_end = job.ChunkEnd(task.begin);
      passes.normalise(job, task.begin);
    });
    for (const ScoreJob& job : jobs) MergeNormalisers(job);
    tasks.clear();
  }
  size_t chunks = 0;
  for (const ScoreJob& job : jobs) chunks += job.chunks();
  for (uint32_t job = 0; job < jobs.size(); ++job) {
    const uint32_t parts = PartsOf(jobs[job], chunks, context.pool.threads());
    for (uint32_t i = 0; i < parts; ++i) {
      tasks.push_back({job, jobs[job].PartBegin(i, parts), jobs[job].PartBegin(i + 1, parts)});
    }
  }
  run([&](ScoreJob& job, const Task& task) {
    job.fetch_end = task.end;
    passes.score(job, task.begin, task.end);
  });
}

}  // namespace sparsekv::cpu
#endif  // HWY_ONCE
