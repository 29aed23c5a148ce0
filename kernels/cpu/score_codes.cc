#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/score_codes.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/cpu/operations.h"
#include "kernels/cpu/score_plan.h"
#include "kernels/cpu/vector-inl.h"

// Scores of label pages that hold codes: SIMD over the tokens of a page. A word of codes is taken
// apart into pairs of 16-bit numbers, which are multiplied and added in pairs with the query's:
// sums of integers, exact in any order. A label is taken apart once for up to four query heads.
HWY_BEFORE_NAMESPACE();
namespace sparsekv::cpu::HWY_NAMESPACE {
namespace {

using DI = hn::ScalableTag<int32_t>;
using DS = hn::Repartition<int16_t, DI>;
using VI = hn::Vec<DI>;

// Vectors of tokens whose labels are in registers together.
constexpr size_t kStrip = kManyRegisters ? 4 : 2;
constexpr size_t kStripTokens = kStrip * kLanes;
static_assert(kBlockTokens % kStripTokens == 0);

// A page's labels of one KV head (labels.h), from one of its tokens on.
struct CodedPage {
  const hwy::float16_t* steps;
  const hwy::float16_t* leasts;
  const int32_t* words;  // the next word is kBlockTokens behind

  HWY_INLINE CodedPage(const std::byte* head, size_t token) {
    steps = reinterpret_cast<const hwy::float16_t*>(head) + token;
    leasts = steps + kBlockTokens;
    words = reinterpret_cast<const int32_t*>(head) + kBlockTokens + token;
  }
};

// scores[h][token] of the strip's tokens, for kHeads query heads; `codes`: theirs, `stride` apart.
template <uint32_t kBits, size_t kHeads>
HWY_INLINE void StripScores(const CodedPage& page, size_t words, const uint32_t* HWY_RESTRICT codes,
                            size_t stride, float (*HWY_RESTRICT scores)[kBlockTokens]) {
  constexpr uint32_t kPairs = 16 / kBits;
  const DF d;
  const DI di;
  const DS ds;
  const VI mask = hn::Set(di, static_cast<int32_t>(((1u << kBits) - 1) * 0x10001u));
  VI sums[kHeads][kStrip];
#pragma GCC unroll 4
  for (size_t h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (size_t i = 0; i < kStrip; ++i) sums[h][i] = hn::Zero(di);
  }
  for (size_t w = 0; w < words; ++w) {
    VI word[kStrip];
#pragma GCC unroll 4
    for (size_t i = 0; i < kStrip; ++i) {
      word[i] = hn::LoadU(di, page.words + w * kBlockTokens + i * kLanes);
    }
#pragma GCC unroll 8
    for (uint32_t pair = 0; pair < kPairs; ++pair) {
      const uint32_t* query = codes + w * kPairs + pair;
#pragma GCC unroll 4
      for (size_t h = 0; h < kHeads; ++h) {
        const auto q = hn::BitCast(ds, hn::Set(di, static_cast<int32_t>(query[h * stride])));
#pragma GCC unroll 4
        for (size_t i = 0; i < kStrip; ++i) {
          const auto code = hn::BitCast(ds, hn::And(word[i], mask));
          VI unused = hn::Zero(di);
          sums[h][i] = hn::ReorderWidenMulAccumulate(di, code, q, sums[h][i], unused);
        }
      }
#pragma GCC unroll 4
      for (size_t i = 0; i < kStrip; ++i) word[i] = hn::ShiftRight<kBits>(word[i]);
    }
  }
#pragma GCC unroll 4
  for (size_t i = 0; i < kStrip; ++i) {
    const VF step = LoadFloats(page.steps + i * kLanes);
    const VF least = LoadFloats(page.leasts + i * kLanes);
#pragma GCC unroll 4
    for (size_t h = 0; h < kHeads; ++h) {
      const uint32_t* scale = codes + h * stride + stride - 2;
      const VF unit = hn::BitCast(d, hn::Set(di, static_cast<int32_t>(scale[0])));
      const VF sum = hn::ConvertTo(d, hn::Set(di, static_cast<int32_t>(scale[1])));
      const VF by_steps = hn::Mul(step, hn::ConvertTo(d, sums[h][i]));
      const VF score = hn::Mul(unit, hn::Add(by_steps, hn::Mul(least, sum)));
      hn::StoreU(score, d, scores[h] + i * kLanes);
    }
  }
}

// scores[h]: of a page's tokens, all of them, for kHeads query heads from `head` of the KV head on.
template <size_t kHeads>
HWY_INLINE void PageScores(const ScoreJob& job, uint32_t page, uint32_t kv_head, size_t head,
                           LabelLines& fetch, float (*HWY_RESTRICT scores)[kBlockTokens]) {
  const LabelLayout& layout = *job.item->labels.layout;
  const std::byte* labels = job.item->labels.Head(kv_head, page);
  const size_t stride = job.code_words(), words = layout.words();
  const uint32_t* codes = job.codes + (size_t{kv_head} * job.args->group + head) * stride;
  const auto strips = [&]<uint32_t kBits>() {
    for (size_t t = 0; t < kBlockTokens; t += kStripTokens) {
      auto* strip = reinterpret_cast<float(*)[kBlockTokens]>(scores[0] + t);
      fetch.Part(t / kStripTokens, kBlockTokens / kStripTokens, layout.head_stride());
      StripScores<kBits, kHeads>(CodedPage(labels, t), words, codes, stride, strip);
    }
  };
  switch (layout.format) {
    case LabelFormat::kInt8:
      return strips.template operator()<8>();
    case LabelFormat::kInt4:
      return strips.template operator()<4>();
    default:
      return strips.template operator()<2>();
  }
}

// Calls function(head, count, scores) for blocks of up to 4 query heads of the KV head.
template <typename Function>
HWY_INLINE void ByHeads(const ScoreJob& job, uint32_t page, uint32_t kv_head, LabelLines& fetch,
                        const Function& function) {
  HWY_ALIGN float scores[4][kBlockTokens];
  const size_t group = job.args->group;
  for (size_t head = 0; head < group; head += 4) {
    const size_t count = HWY_MIN(group - head, size_t{4});
    switch (count) {
      case 1:
        PageScores<1>(job, page, kv_head, head, fetch, scores);
        break;
      case 2:
        PageScores<2>(job, page, kv_head, head, fetch, scores);
        break;
      case 3:
        PageScores<3>(job, page, kv_head, head, fetch, scores);
        break;
      default:
        PageScores<4>(job, page, kv_head, head, fetch, scores);
    }
    function(head, count, scores);
  }
}

// pooled = pooled and one query head's scores.
HWY_INLINE void PoolHead(Pooling pooling, bool first, const float* norm,
                         const float* HWY_RESTRICT scores, float* HWY_RESTRICT pooled) {
  const DF d;
  for (size_t t = 0; t < kBlockTokens; t += kLanes) {
    VF share = hn::Load(d, scores + t);
    if (pooling == Pooling::kSoftmaxMass) {
      share = hn::Mul(Exp(hn::Sub(share, hn::Set(d, norm[0]))), hn::Set(d, norm[1]));
    }
    if (!first) {
      const VF before = hn::Load(d, pooled + t);
      share = pooling == Pooling::kMaxNormalised ? hn::Max(before, share) : hn::Add(before, share);
    }
    hn::Store(share, d, pooled + t);
  }
}

void CodedScorePages(const ScoreJob& job, uint32_t begin, uint32_t end) {
  const ScoreLabelsArgs& args = *job.args;
  ForPages(job, begin, end, job.first_head, job.end_head, [&](uint32_t page, LabelLines& fetch) {
    const uint32_t skipped = job.Skipped(page), valid = job.Valid(page);
    for (uint32_t kv_head = job.first_head; kv_head < job.end_head; ++kv_head) {
      const float* norms = job.normaliser + size_t{2} * kv_head * args.group;
      HWY_ALIGN float pooled[kBlockTokens];  // labels beyond the last token are undefined
      ByHeads(job, page, kv_head, fetch,
              [&](size_t head, size_t count, const float(*scores)[kBlockTokens]) {
                for (size_t h = 0; h < count; ++h) {
                  PoolHead(args.pooling, head + h == 0, norms + 2 * (head + h), scores[h], pooled);
                }
              });
      float* to = job.Scores(kv_head, page);
      memcpy(to + skipped, pooled + skipped, (valid - skipped) * sizeof(float));
    }
  });
}

// Adds a page's scores of one query head to its highest one and the sum of exp(score - highest).
HWY_INLINE void AddToNormaliser(float* HWY_RESTRICT scores, uint32_t skipped, uint32_t valid,
                                float* partial) {
  const DF d;
  for (uint32_t t = 0; t < skipped; ++t) scores[t] = -HUGE_VALF;
  for (uint32_t t = valid; t < kBlockTokens; ++t) scores[t] = -HUGE_VALF;
  VF highest = hn::Set(d, partial[0]);
  for (size_t t = 0; t < kBlockTokens; t += kLanes) {
    highest = hn::Max(highest, hn::Load(d, scores + t));
  }
  highest = hn::MaxOfLanes(d, highest);
  VF total = hn::Zero(d);
  for (size_t t = 0; t < kBlockTokens; t += kLanes) {
    total = hn::Add(total, Exp(hn::Sub(hn::Load(d, scores + t), highest)));
  }
  const float maximum = hn::GetLane(highest);
  partial[1] = partial[1] * Exp(partial[0] - maximum) + Sum(total);
  partial[0] = maximum;
}

void CodedNormaliseChunk(const ScoreJob& job, uint32_t chunk) {
  const size_t group = job.args->group;
  for (uint32_t kv_head = 0; kv_head < job.args->kv_heads; ++kv_head) {
    float* partials = job.partials + (chunk * job.heads() + kv_head * group) * 2;
    for (size_t h = 0; h < group; ++h) {
      partials[2 * h] = -HUGE_VALF;
      partials[2 * h + 1] = 0;
    }
    const uint32_t begin = job.ChunkBegin(chunk), end = job.ChunkEnd(chunk);
    ForPages(job, begin, end, kv_head, kv_head + 1, [&](uint32_t page, LabelLines& fetch) {
      ByHeads(job, page, kv_head, fetch,
              [&](size_t head, size_t count, float(*scores)[kBlockTokens]) {
                for (size_t h = 0; h < count; ++h) {
                  AddToNormaliser(scores[h], job.Skipped(page), job.Valid(page),
                                  partials + (head + h) * 2);
                }
              });
    });
  }
}

}  // namespace
}  // namespace sparsekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sparsekv::cpu {

HWY_EXPORT(CodedScorePages);
HWY_EXPORT(CodedNormaliseChunk);

ScorePasses CodedPasses() {
  return {HWY_DYNAMIC_DISPATCH(CodedNormaliseChunk), HWY_DYNAMIC_DISPATCH(CodedScorePages)};
}

void CodeQueries(const ScoreJob& job) {
  const LabelLayout& layout = *job.item->labels.layout;
  const uint32_t pairs = 16 / CodeBits(layout.format), words = layout.words();
  for (size_t head = 0; head < job.heads(); ++head) {
    const CodedQuery query = CodeQuery({job.query + head * job.channels(), size_t{job.channels()}});
    uint32_t* to = job.codes + head * job.code_words();
    for (uint32_t i = 0; i < words * pairs; ++i) {
      // The codes of a word that a shift leaves at the bottom of its halves; zeros beyond the last.
      const int8_t* low = query.codes + i / pairs * 2 * pairs + i % pairs;
      to[i] = static_cast<uint16_t>(low[0]) | uint32_t{static_cast<uint16_t>(low[pairs])} << 16;
    }
    to[words * pairs] = std::bit_cast<uint32_t>(query.unit);
    to[words * pairs + 1] = static_cast<uint32_t>(query.sum);
  }
}

}  // namespace sparsekv::cpu
#endif  // HWY_ONCE
