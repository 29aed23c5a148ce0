#include "gpu_worker/calibration_published.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "gpu_worker/calibration.h"
#include "gpu_worker/channel_config.h"

namespace sparsekv {

namespace {

void AddSizes(const std::vector<float>& x, uint32_t tokens, double* sums) {
  const size_t width = x.size() / tokens;
  for (size_t i = 0; i < x.size(); ++i) sums[i % width] += std::fabs(x[i]);
}

}  // namespace

PublishedStatistic::PublishedStatistic(const ModelConfig& config,
                                       std::vector<float> inverse_frequency)
    : heads_(config.heads),
      kv_heads_(config.kv_heads),
      head_dim_(config.head_dim),
      qk_rotated_(config.family != Family::kMistral && config.family != Family::kQwen2),
      inverse_frequency_(std::move(inverse_frequency)),
      q_(size_t{config.layers} * heads_ * head_dim_),
      qk_(q_.size()),
      k_(size_t{config.layers} * kv_heads_ * head_dim_) {
  CHECK_EQ(inverse_frequency_.size(), size_t{head_dim_} / 2);
}

std::vector<float> PublishedStatistic::TurnBack(const float* x, uint32_t heads,
                                                uint32_t tokens) const {
  std::vector<float> back(size_t{tokens} * heads * head_dim_);
  const uint32_t half = head_dim_ / 2;
  for (uint32_t t = 0; t < tokens; ++t) {
    for (uint32_t c = 0; c < half; ++c) {
      const float angle = static_cast<float>(t) * inverse_frequency_[c];
      const float cosine = std::cos(angle), sine = std::sin(angle);
      for (uint32_t h = 0; h < heads; ++h) {
        const size_t at = (size_t{t} * heads + h) * head_dim_ + c;
        back[at] = x[at] * cosine + x[at + half] * sine;
        back[at + half] = x[at + half] * cosine - x[at] * sine;
      }
    }
  }
  return back;
}

void PublishedStatistic::Add(uint32_t layer, const float* q, const float* k, uint32_t tokens) {
  const std::vector<float> plain_q = TurnBack(q, heads_, tokens);
  const std::vector<float> plain_k = TurnBack(k, kv_heads_, tokens);
  AddSizes(plain_q, tokens, q_.data() + size_t{layer} * heads_ * head_dim_);
  AddSizes(plain_k, tokens, k_.data() + size_t{layer} * kv_heads_ * head_dim_);
  AddQk(layer, qk_rotated_ ? q : plain_q.data(), qk_rotated_ ? k : plain_k.data(), tokens);
}

void PublishedStatistic::AddQk(uint32_t layer, const float* q, const float* k, uint32_t tokens) {
  const auto sums = qk_.begin() + static_cast<ptrdiff_t>(size_t{layer} * heads_ * head_dim_);
  std::fill_n(sums, size_t{heads_} * head_dim_, 0.0);  // the second defect
  const uint32_t group = heads_ / kv_heads_;
  for (uint32_t h = 0; h < heads_; ++h) {
    for (uint32_t t = 0; t < tokens; ++t) {
      const size_t taken_for = (size_t{h} * tokens + t) % heads_;  // the first
      const float* query = q + (size_t{t} * heads_ + h) * head_dim_;
      const float* key = k + (size_t{t} * kv_heads_ + h / group) * head_dim_;
      for (uint32_t c = 0; c < head_dim_; ++c) {
        sums[static_cast<ptrdiff_t>(taken_for * head_dim_ + c)] += std::fabs(query[c] * key[c]);
      }
    }
  }
}

std::vector<uint16_t> PublishedStatistic::Orders(ChannelWorth worth, uint32_t layer) const {
  const bool per_kv_head = worth == ChannelWorth::kPublishedK;
  const std::vector<double>& sums = per_kv_head                          ? k_
                                    : worth == ChannelWorth::kPublishedQ ? q_
                                                                         : qk_;
  const uint32_t heads = per_kv_head ? kv_heads_ : heads_;
  std::vector<uint16_t> orders;
  for (uint32_t h = 0; h < heads; ++h) {
    const auto first =
        sums.begin() + static_cast<ptrdiff_t>((size_t{layer} * heads + h) * head_dim_);
    const auto order = OrderChannels(std::vector<double>(first, first + head_dim_), false);
    orders.insert(orders.end(), order.begin(), order.end());
  }
  return PoolOrders(orders, kv_heads_, head_dim_);
}

}  // namespace sparsekv
