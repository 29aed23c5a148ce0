#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/row_mass.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/check.h"
#include "base/limits.h"
#include "kernels/cpu/operations.h"
#include "kernels/cpu/row_mass_plan.h"
#include "kernels/cpu/vector-inl.h"

// Softmax over all rows, and the histogram of scores. A task of the first is some rows, counted
// from position 0, so that no thread shows in a sum.
HWY_BEFORE_NAMESPACE();
namespace sparsekv::cpu::HWY_NAMESPACE {
namespace {

size_t Padded(size_t head_dim) { return RoundUp(head_dim, kLanes); }

// Scores of a chunk's rows, and the highest of each query head.
template <typename T>
void ScoreRows(const RowMassJob& job, uint32_t chunk) {
  const DF d;
  const RowMassArgs& args = *job.args;
  HWY_ALIGN float key[kMaxHeadDim + kLanes];
  float* highest = job.highest + chunk * args.group;
  std::fill_n(highest, args.group, -HUGE_VALF);
  for (uint32_t t = job.Begin(chunk); t < job.End(chunk); ++t) {
    WidenRow(reinterpret_cast<const T*>(args.rows.Row(args.kv_head, t)), args.head_dim, job.padded,
             key);
    for (uint32_t g = 0; g < args.group; ++g) {
      const float* q = job.q + g * job.padded;
      VF sum = hn::Zero(d);
      for (size_t c = 0; c < job.padded; c += kLanes) {
        sum = hn::MulAdd(hn::LoadU(d, q + c), hn::Load(d, key + c), sum);
      }
      const float score = Sum(sum);
      job.weights[size_t{g} * job.span() + t - args.first] = score;
      highest[g] = std::max(highest[g], score);
    }
  }
}

void ScoreChunk(const RowMassJob& job, uint32_t chunk) {
  WithType(job.args->rows.layer_base, job.args->rows.layout->dtype, [&](const auto* typed) {
    ScoreRows<std::remove_cvref_t<decltype(*typed)>>(job, chunk);
  });
}

void WeighChunk(const RowMassJob& job, uint32_t chunk) {
  const DF d;
  const uint32_t begin = job.Begin(chunk) - job.args->first, end = job.End(chunk) - job.args->first;
  for (uint32_t g = 0; g < job.args->group; ++g) {
    float* weights = job.weights + size_t{g} * job.span();
    const VF maximum = hn::Set(d, job.maximum[g]);
    VF sums = hn::Zero(d);
    uint32_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      const VF weight = Exp(hn::Sub(hn::LoadU(d, weights + i), maximum));
      hn::StoreU(weight, d, weights + i);
      sums = hn::Add(sums, weight);
    }
    float total = Sum(sums);
    for (; i < end; ++i) total += weights[i] = Exp(weights[i] - job.maximum[g]);
    job.total[chunk * job.args->group + g] = total;
  }
}

void MassChunk(const RowMassJob& job, uint32_t chunk) {
  const RowMassArgs& args = *job.args;
  for (uint32_t t = job.Begin(chunk); t < job.End(chunk); ++t) {
    float mass = 0;
    for (uint32_t g = 0; g < args.group; ++g) {
      mass += job.weights[size_t{g} * job.span() + t - args.first] * job.factor[g];
    }
    args.mass[t] = mass;
  }
}

}  // namespace
}  // namespace sparsekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sparsekv::cpu {

HWY_EXPORT(Padded);
HWY_EXPORT(ScoreChunk);
HWY_EXPORT(WeighChunk);
HWY_EXPORT(MassChunk);

void RowMass(const RowMassArgs& args, Context& context) {
  CHECK_LT(args.first, args.tokens);
  CHECK_LE(args.head_dim, kMaxHeadDim);
  RowMassJob job = {.args = &args, .padded = HWY_DYNAMIC_DISPATCH(Padded)(args.head_dim)};
  const uint32_t group = args.group, chunks = job.chunks();
  const size_t floats = group * (job.padded + job.span() + 2 * chunks + 2);
  job.q = context.shared.Get(0, floats);
  job.weights = job.q + group * job.padded;
  job.highest = job.weights + size_t{group} * job.span();
  job.total = job.highest + chunks * group;
  job.maximum = job.total + chunks * group;
  job.factor = job.maximum + group;
  for (uint32_t g = 0; g < group; ++g) {
    for (size_t c = 0; c < job.padded; ++c) {
      job.q[g * job.padded + c] =
          c < args.head_dim ? args.q[g * args.head_dim + c] * args.scale : 0.0f;
    }
  }
  const auto score = HWY_DYNAMIC_DISPATCH(ScoreChunk);
  context.pool.Run(chunks, [&](uint32_t chunk, unsigned) { score(job, chunk); });
  for (uint32_t g = 0; g < group; ++g) {
    job.maximum[g] = job.highest[g];
    for (uint32_t chunk = 1; chunk < chunks; ++chunk) {
      job.maximum[g] = std::max(job.maximum[g], job.highest[chunk * group + g]);
    }
  }
  const auto weigh = HWY_DYNAMIC_DISPATCH(WeighChunk);
  context.pool.Run(chunks, [&](uint32_t chunk, unsigned) { weigh(job, chunk); });
  for (uint32_t g = 0; g < group; ++g) {
    double total = 0;
    for (uint32_t chunk = 0; chunk < chunks; ++chunk) total += job.total[chunk * group + g];
    job.factor[g] = static_cast<float>(1 / (total * group));
  }
  const auto mass = HWY_DYNAMIC_DISPATCH(MassChunk);
  context.pool.Run(chunks, [&](uint32_t chunk, unsigned) { mass(job, chunk); });
}

// Neighbouring scores are often alike, so four histograms take turns: an increment need not wait
// for the one before.
void CountScores(const ScoreHistogramArgs& args, Context& context) {
  context.pool.Run(args.kv_heads, [&](uint32_t h, unsigned) {
    const float* scores = args.scores + h * args.score_stride;
    float low = HUGE_VALF, high = -HUGE_VALF;
    for (uint32_t t = args.begin; t < args.end; ++t) {
      const float value = args.Value(scores[t]);
      if (!std::isfinite(value)) continue;
      low = std::min(low, value);
      high = std::max(high, value);
    }
    ScoreHistogram& histogram = args.histograms[h] = {};
    if (low <= high) {
      histogram.low = low;
      histogram.high = high;
    }
    const float bins = histogram.bins_per_score();
    constexpr uint32_t kTurns = 4;
    uint32_t counts[kTurns][kScoreBins] = {};
    for (uint32_t t = args.begin; t < args.end; ++t) {
      ++counts[t % kTurns][ScoreHistogram::Bin(args.Value(scores[t]), histogram.low, bins)];
    }
    for (uint32_t bin = 0; bin < kScoreBins; ++bin) {
      for (const auto& turn : counts) histogram.counts[bin] += turn[bin];
    }
  });
}

}  // namespace sparsekv::cpu
#endif  // HWY_ONCE
