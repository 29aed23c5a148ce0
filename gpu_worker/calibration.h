#pragma once

#include <cstdint>
#include <vector>

#include "gpu_worker/calibration_criterion.h"
#include "gpu_worker/calibration_sample.h"
#include "gpu_worker/checkpoint/model_config.h"

namespace sparsekv {

// Channels 0 .. worth.size()-1 by their worth, best first; ties by the lower channel, or pair.
std::vector<uint16_t> OrderChannels(const std::vector<double>& worth, bool pairs);

// Accumulates what the criteria that are not the published ones go by, per layer and KV head, over
// all of a text.
class ChannelStatistic {
 public:
  explicit ChannelStatistic(const ModelConfig& config);

  // Every token, as Model::QkObserver has them. One thread.
  void Add(uint32_t layer, const float* q, const float* k, uint32_t tokens);
  // Once per context and head: for kVariance, kMass and kLift. Threads may add different heads.
  void AddSample(const HeadSample& sample);

  std::vector<double> Worth(ChannelWorth worth, uint32_t layer, uint32_t kv_head) const;
  // Every channel of one KV head, best first.
  std::vector<uint16_t> Order(ChannelCriterion criterion, uint32_t layer, uint32_t kv_head) const;

 private:
  size_t Head(uint32_t layer, uint32_t kv_head) const {
    return (size_t{layer} * kv_heads_ + kv_head) * head_dim_;
  }

  uint32_t heads_, kv_heads_, head_dim_;
  // Sums, [layers, kv_heads, head_dim].
  std::vector<double> q_, k_, diagonal_, variance_, mass_, lift_;
};

}  // namespace sparsekv
