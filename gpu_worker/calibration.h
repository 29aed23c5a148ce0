#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "gpu_worker/channel_config.h"
#include "gpu_worker/checkpoint/model_config.h"

namespace sparsekv {

// What a channel of a KV head is worth to its label.
enum class ChannelCriterion : uint8_t {
  // Sum over the group's query heads of mean_t |q_h[t, c]| * mean_s |k[s, c]|: the mean size of the
  // channel's part of a score, over all pairs of query and key.
  kQk,
  kQ,  // sum over the group's query heads of mean |q_h[c]|
  kK,  // mean |k[c]|
};
std::optional<ChannelCriterion> ParseCriterion(std::string_view name);  // "qk", "q", "k"

// Accumulates the statistic over all text, per layer and KV head, after rotary embedding. One
// thread.
class ChannelStatistic {
 public:
  explicit ChannelStatistic(const ModelConfig& config);

  // As Model::QkObserver.
  void Add(uint32_t layer, const float* q, const float* k, uint32_t tokens);

  // Every channel of one KV head, best first; ties by the lower channel.
  std::vector<uint16_t> Order(ChannelCriterion criterion, uint32_t layer, uint32_t kv_head) const;

 private:
  uint32_t heads_, kv_heads_, head_dim_;
  std::vector<double> q_;  // [layers][heads][head_dim], sums of absolute values over tokens
  std::vector<double> k_;  // [layers][kv_heads][head_dim]
};

}  // namespace sparsekv
