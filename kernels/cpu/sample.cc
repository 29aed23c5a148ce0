#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/sample.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "base/check.h"
#include "kernels/cpu/operations.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sparsekv::cpu::HWY_NAMESPACE {
namespace {

// kLanes logits from `at`; NaN and what lies beyond the end count as minus infinity.
HWY_INLINE VF Logits(const float* logits, size_t at, size_t end) {
  const DF d;
  const VF lowest = hn::Set(d, -HUGE_VALF);
  VF v;
  if (at + kLanes <= end) {
    v = hn::LoadU(d, logits + at);
  } else {
    v = hn::IfThenElse(hn::FirstN(d, end - at), LoadFloatsTail(logits + at, end - at), lowest);
  }
  return hn::IfThenElse(hn::IsNaN(v), lowest, v);
}

float MaxLogit(const float* logits, size_t count) {
  const DF d;
  VF highest = hn::Set(d, -HUGE_VALF);
  for (size_t i = 0; i < count; i += kLanes) highest = hn::Max(highest, Logits(logits, i, count));
  return hn::GetLane(hn::MaxOfLanes(d, highest));
}

// The first index whose logit is `value`. REQUIRES: there is one (NaN counts as minus infinity).
uint32_t FindLogit(const float* logits, size_t count, float value) {
  const DF d;
  for (size_t i = 0; i < count; i += kLanes) {
    const auto found = hn::FindFirstTrue(d, hn::Eq(Logits(logits, i, count), hn::Set(d, value)));
    if (found >= 0) return static_cast<uint32_t>(i) + static_cast<uint32_t>(found);
  }
  return 0;
}

// Weights exp((logit - highest) * inverse_temperature) of logits[0, count) and their sum. The
// highest logits weigh 1 even where the difference is not a number (infinite logits).
float Weights(const float* logits, size_t count, float highest, float inverse_temperature,
              float* weights) {
  const DF d;
  const VF top = hn::Set(d, highest);
  VF total = hn::Zero(d);
  for (size_t i = 0; i < count; i += kLanes) {
    const VF v = Logits(logits, i, count);
    const VF scaled = hn::Mul(hn::Sub(v, top), hn::Set(d, inverse_temperature));
    VF weight = hn::IfThenElse(hn::Eq(v, top), hn::Set(d, 1.0f), Exp(scaled));
    if (i + kLanes <= count) {
      hn::StoreU(weight, d, weights + i);
    } else {
      weight = hn::IfThenElseZero(hn::FirstN(d, count - i), weight);
      HWY_ALIGN float padded[kLanes];
      hn::Store(weight, d, padded);
      for (size_t j = i; j < count; ++j) weights[j] = padded[j - i];
    }
    total = hn::Add(total, weight);
  }
  return Sum(total);
}

}  // namespace
}  // namespace sparsekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sparsekv::cpu {
namespace {

HWY_EXPORT(MaxLogit);
HWY_EXPORT(FindLogit);
HWY_EXPORT(Weights);

constexpr size_t kChunk = 1024;  // weights that are summed in float32 before double takes over

// The weights of all tokens, and their sums by chunk so that a walk can skip.
struct Distribution {
  const float* weights = nullptr;  // [vocab]
  std::vector<double> chunk_sums;
  double mass = 0;
};

Distribution MakeDistribution(const SampleArgs& args, float highest, float temperature,
                              float* weights) {
  Distribution distribution;
  distribution.weights = weights;
  for (size_t i = 0; i < args.vocab; i += kChunk) {
    const size_t count = std::min(kChunk, args.vocab - i);
    distribution.chunk_sums.push_back(HWY_DYNAMIC_DISPATCH(Weights)(
        args.logits + i, count, highest, 1.0f / temperature, weights + i));
    distribution.mass += distribution.chunk_sums.back();
  }
  return distribution;
}

float Usable(float logit) { return std::isnan(logit) ? -HUGE_VALF : logit; }

// The upper bits of a logit as an integer of the same order.
constexpr uint32_t kBuckets = 2048;
uint32_t Bucket(float logit) {
  const auto bits = std::bit_cast<uint32_t>(Usable(logit) + 0.0f);  // -0 + 0 = +0
  return (bits >> 31 ? ~bits : bits | 0x80000000u) >> 21;
}

// The highest ids, best first, ties by the lower id: at least `count` of them and at least `mass`
// of the distribution, or all. Only what shares the last bucket is ranked in vain.
std::vector<uint32_t> Highest(const SampleArgs& args, const float* weights, size_t count,
                              double mass) {
  std::vector<uint32_t> counts(kBuckets);
  std::vector<double> masses(kBuckets);
  for (uint32_t id = 0; id < args.vocab; ++id) {
    const uint32_t bucket = Bucket(args.logits[id]);
    ++counts[bucket];
    masses[bucket] += weights[id];
  }
  uint32_t lowest = kBuckets;
  size_t counted = 0;
  double reached = 0;
  while (lowest > 0 && (counted < count || reached < mass)) {
    --lowest;
    counted += counts[lowest];
    reached += masses[lowest];
  }
  std::vector<uint32_t> ids;
  ids.reserve(counted);
  for (uint32_t id = 0; id < args.vocab; ++id) {
    if (Bucket(args.logits[id]) >= lowest) ids.push_back(id);
  }
  std::sort(ids.begin(), ids.end(), [&](uint32_t a, uint32_t b) {
    const float x = Usable(args.logits[a]);
    const float y = Usable(args.logits[b]);
    return x > y || (x == y && a < b);
  });
  return ids;
}

// The tokens that top_k and top_p leave, by id.
std::vector<uint32_t> KeptTokens(const SampleArgs& args, const Distribution& distribution) {
  const SampleParams& params = args.params;
  const float* weights = distribution.weights;
  std::vector<uint32_t> ids;
  double mass = distribution.mass;
  if (params.top_k != 0 && params.top_k < args.vocab) {
    ids = Highest(args, weights, params.top_k, 0);
    ids.resize(params.top_k);
    mass = 0;
    for (uint32_t id : ids) mass += weights[id];
  } else {
    ids = Highest(args, weights, 1, params.top_p * mass);
  }
  if (params.top_p < 1) {
    double reached = 0;
    size_t count = 0;
    while (count < ids.size() && (count == 0 || reached < params.top_p * mass)) {
      reached += weights[ids[count++]];
    }
    ids.resize(count);
  }
  std::sort(ids.begin(), ids.end());
  return ids;
}

uint32_t DrawFrom(const std::vector<uint32_t>& kept, const Distribution& distribution,
                  double uniform, uint32_t fallback) {
  double mass = 0;
  for (uint32_t id : kept) mass += distribution.weights[id];
  uint32_t drawn = fallback;
  double passed = 0;
  for (uint32_t id : kept) {
    if (distribution.weights[id] == 0) continue;
    drawn = id;
    passed += distribution.weights[id];
    if (passed > uniform * mass) break;
  }
  return drawn;
}

uint32_t DrawFromAll(uint32_t vocab, const Distribution& distribution, double uniform,
                     uint32_t fallback) {
  const double target = uniform * distribution.mass;
  uint32_t drawn = fallback;
  double before = 0;
  for (size_t chunk = 0; chunk < distribution.chunk_sums.size(); ++chunk) {
    const double after = before + distribution.chunk_sums[chunk];
    const bool last = chunk + 1 == distribution.chunk_sums.size();
    if (after > target || last) {
      double passed = before;
      const size_t end = std::min<size_t>(vocab, (chunk + 1) * kChunk);
      for (size_t id = chunk * kChunk; id < end; ++id) {
        if (distribution.weights[id] == 0) continue;
        drawn = static_cast<uint32_t>(id);
        passed += distribution.weights[id];
        if (passed > target) return drawn;
      }
    }
    before = after;
  }
  return drawn;
}

}  // namespace

SampledToken Sample(const SampleArgs& args, Context& context) {
  CHECK_LT(0u, args.vocab);
  const float highest = HWY_DYNAMIC_DISPATCH(MaxLogit)(args.logits, args.vocab);
  float* weights = context.shared.Get(0, args.vocab);
  const double log_total = std::log(MakeDistribution(args, highest, 1.0f, weights).mass);
  const auto logprob = [&](uint32_t id) {
    const double logit = Usable(args.logits[id]);
    return static_cast<float>((logit == highest ? 0 : logit - highest) - log_total);
  };

  SampledToken token;
  token.id = HWY_DYNAMIC_DISPATCH(FindLogit)(args.logits, args.vocab, highest);
  const SampleParams& params = args.params;
  if (params.temperature > 0) {
    const Distribution distribution = MakeDistribution(args, highest, params.temperature, weights);
    const double uniform = UniformFor(params.seed, args.position);
    if (params.top_k == 0 && params.top_p >= 1) {
      token.id = DrawFromAll(args.vocab, distribution, uniform, token.id);
    } else {
      token.id = DrawFrom(KeptTokens(args, distribution), distribution, uniform, token.id);
    }
  }
  token.logprob = logprob(token.id);
  if (args.top_logprobs > 0) {
    std::vector<uint32_t> ids = Highest(args, weights, args.top_logprobs, 0);
    if (ids.size() > args.top_logprobs) ids.resize(args.top_logprobs);
    for (uint32_t id : ids) token.top.emplace_back(id, logprob(id));
  }
  return token;
}

}  // namespace sparsekv::cpu
#endif  // HWY_ONCE
