#include "gpu_worker/calibration.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace sparsekv {

std::optional<ChannelCriterion> ParseCriterion(std::string_view name) {
  if (name == "qk") return ChannelCriterion::kQk;
  if (name == "q") return ChannelCriterion::kQ;
  if (name == "k") return ChannelCriterion::kK;
  return std::nullopt;
}

ChannelStatistic::ChannelStatistic(const ModelConfig& config)
    : heads_(config.heads),
      kv_heads_(config.kv_heads),
      head_dim_(config.head_dim),
      q_(size_t{config.layers} * heads_ * head_dim_),
      k_(size_t{config.layers} * kv_heads_ * head_dim_) {}

void ChannelStatistic::Add(uint32_t layer, const float* q, const float* k, uint32_t tokens) {
  auto add = [&](const float* x, size_t width, double* sums) {
    for (uint32_t t = 0; t < tokens; ++t) {
      for (size_t i = 0; i < width; ++i) sums[i] += std::fabs(x[t * width + i]);
    }
  };
  const size_t q_width = size_t{heads_} * head_dim_, k_width = size_t{kv_heads_} * head_dim_;
  add(q, q_width, q_.data() + layer * q_width);
  add(k, k_width, k_.data() + layer * k_width);
}

std::vector<uint16_t> ChannelStatistic::Order(ChannelCriterion criterion, uint32_t layer,
                                              uint32_t kv_head) const {
  const uint32_t group = heads_ / kv_heads_;
  const double* k = k_.data() + (size_t{layer} * kv_heads_ + kv_head) * head_dim_;
  const double* q = q_.data() + (size_t{layer} * heads_ + size_t{kv_head} * group) * head_dim_;
  std::vector<double> worth(head_dim_);
  for (uint32_t c = 0; c < head_dim_; ++c) {
    double q_sum = 0;
    for (uint32_t h = 0; h < group; ++h) q_sum += q[h * head_dim_ + c];
    worth[c] = criterion == ChannelCriterion::kK   ? k[c]
               : criterion == ChannelCriterion::kQ ? q_sum
                                                   : q_sum * k[c];
  }
  std::vector<uint16_t> order(head_dim_);
  std::iota(order.begin(), order.end(), uint16_t{0});
  std::ranges::stable_sort(order, [&](uint16_t a, uint16_t b) { return worth[a] > worth[b]; });
  return order;
}

}  // namespace sparsekv
