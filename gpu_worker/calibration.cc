#include "gpu_worker/calibration.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace sparsekv {

namespace {

// Sums in so many lanes that the compiler may add several numbers at once.
constexpr uint32_t kLanes = 16;

template <typename Term>
double Sum(uint32_t begin, uint32_t end, Term term) {
  float lanes[kLanes] = {};
  uint32_t t = begin;
  for (; t + kLanes <= end; t += kLanes) {
    for (uint32_t i = 0; i < kLanes; ++i) lanes[i] += term(t + i);
  }
  double sum = 0;
  for (; t < end; ++t) sum += term(t);
  for (float lane : lanes) sum += lane;
  return sum;
}

// In double, for a difference of large numbers.
double Variance(const float* x, uint32_t count) {
  double mean = 0, squares = 0;
  for (uint32_t t = 0; t < count; ++t) mean += x[t];
  mean /= count;
  for (uint32_t t = 0; t < count; ++t) squares += (x[t] - mean) * (x[t] - mean);
  return squares / count;
}

}  // namespace

std::vector<uint16_t> OrderChannels(const std::vector<double>& worth, bool pairs) {
  const size_t units = pairs ? worth.size() / 2 : worth.size();
  const auto value = [&](uint16_t i) { return pairs ? worth[i] + worth[i + units] : worth[i]; };
  std::vector<uint16_t> best(units);
  std::iota(best.begin(), best.end(), uint16_t{0});
  std::ranges::stable_sort(best, [&](uint16_t a, uint16_t b) { return value(a) > value(b); });
  if (!pairs) return best;
  std::vector<uint16_t> order;
  for (uint16_t c : best) {
    order.push_back(c);
    order.push_back(static_cast<uint16_t>(c + units));
  }
  return order;
}

ChannelStatistic::ChannelStatistic(const ModelConfig& config)
    : heads_(config.heads), kv_heads_(config.kv_heads), head_dim_(config.head_dim) {
  for (auto* sums : {&q_, &k_, &diagonal_, &variance_, &mass_, &lift_}) {
    sums->resize(size_t{config.layers} * kv_heads_ * head_dim_);
  }
}

void ChannelStatistic::Add(uint32_t layer, const float* q, const float* k, uint32_t tokens) {
  const uint32_t group = heads_ / kv_heads_;
  for (uint32_t t = 0; t < tokens; ++t) {
    for (uint32_t head = 0; head < kv_heads_; ++head) {
      const size_t at = Head(layer, head);
      const float* key = k + (size_t{t} * kv_heads_ + head) * head_dim_;
      for (uint32_t c = 0; c < head_dim_; ++c) k_[at + c] += std::fabs(key[c]);
      for (uint32_t h = 0; h < group; ++h) {
        const float* query = q + (size_t{t} * heads_ + head * group + h) * head_dim_;
        for (uint32_t c = 0; c < head_dim_; ++c) {
          q_[at + c] += std::fabs(query[c]);
          diagonal_[at + c] += std::fabs(query[c] * key[c]);
        }
      }
    }
  }
}

void ChannelStatistic::AddSample(const HeadSample& sample) {
  const size_t at = Head(sample.layer, sample.kv_head);
  std::vector<float> attention(sample.tokens);
  std::vector<double> squares(head_dim_, 0.0);
  for (size_t i = 0; i < sample.positions.size(); ++i) {
    const HeadSample::Range seen = sample.Seen(i);
    const float* a = attention.data();
    for (uint32_t h = 0; h < sample.group; ++h) {
      const float* q = sample.Query(i, h);
      for (uint32_t c = 0; c < head_dim_; ++c) squares[c] += double{q[c]} * q[c];
      if (seen.low == seen.high) continue;
      sample.Attention(i, h, attention.data());
      const double mass = Sum(seen.low, seen.high, [&](uint32_t t) { return a[t]; });
      for (uint32_t c = 0; c < head_dim_; ++c) {
        const float* k = sample.Channel(c);
        const double mean =
            Sum(seen.low, seen.high, [&](uint32_t t) { return k[t]; }) / (seen.high - seen.low);
        const double attended = Sum(seen.low, seen.high, [&](uint32_t t) { return a[t] * k[t]; });
        const double size =
            Sum(seen.low, seen.high, [&](uint32_t t) { return a[t] * std::fabs(k[t]); });
        mass_[at + c] += std::fabs(q[c]) * size;
        lift_[at + c] += q[c] * (attended - mass * mean);
      }
    }
  }
  for (uint32_t c = 0; c < head_dim_; ++c) {
    variance_[at + c] += squares[c] * Variance(sample.Channel(c), sample.tokens);
  }
}

std::vector<double> ChannelStatistic::Worth(ChannelWorth worth, uint32_t layer,
                                            uint32_t kv_head) const {
  const size_t at = Head(layer, kv_head);
  std::vector<double> result(head_dim_);
  for (uint32_t c = 0; c < head_dim_; ++c) {
    switch (worth) {
      case ChannelWorth::kQ:
        result[c] = q_[at + c];
        break;
      case ChannelWorth::kK:
        result[c] = k_[at + c];
        break;
      case ChannelWorth::kQk:
        result[c] = q_[at + c] * k_[at + c];
        break;
      case ChannelWorth::kDiagonal:
        result[c] = diagonal_[at + c];
        break;
      case ChannelWorth::kVariance:
        result[c] = variance_[at + c];
        break;
      case ChannelWorth::kMass:
        result[c] = mass_[at + c];
        break;
      case ChannelWorth::kLift:
        result[c] = lift_[at + c];
        break;
      default:
        CHECK(false);  // a published one: PublishedStatistic
    }
  }
  return result;
}

std::vector<uint16_t> ChannelStatistic::Order(ChannelCriterion criterion, uint32_t layer,
                                              uint32_t kv_head) const {
  return OrderChannels(Worth(criterion.worth, layer, kv_head), criterion.pairs);
}

}  // namespace sparsekv
