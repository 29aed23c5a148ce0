#pragma once

#include <cstdint>
#include <vector>

#include "gpu_worker/calibration_criterion.h"
#include "gpu_worker/checkpoint/model_config.h"

namespace sparsekv {

// The statistics of the calibration script published with Double Sparsity, as it computes them, to
// compare with. The text is cut into blocks of 512 tokens, each a context of its own.
//   q   per query head, mean |q| before rotary embedding.
//   k   per KV head, mean |k| before rotary embedding.
//   qk  |q k| of the same token, after rotary embedding (before it: Mistral and Qwen2), with its
//   two
//       defects. [heads, tokens] is read as if it were [tokens, heads], so that each "head"
//       averages every head over some of the tokens. And each block overwrites the one before: the
//       last one counts alone.
// The orders of a group's query heads are then pooled by summed rank, as those of published files
// are. The script knows no family with norms of q and k; there, q and k are taken after the norm.
class PublishedStatistic {
 public:
  static constexpr uint32_t kBlockTokens = 512;

  PublishedStatistic(const ModelConfig& config, std::vector<float> inverse_frequency);

  // A block, of tokens 0 .. tokens-1, as Model::QkObserver has it, in order.
  void Add(uint32_t layer, const float* q, const float* k, uint32_t tokens);

  // Every channel of each KV head, [kv_heads, head_dim].
  std::vector<uint16_t> Orders(ChannelWorth worth, uint32_t layer) const;

 private:
  // x [tokens, heads, head_dim] before its rotation.
  std::vector<float> TurnBack(const float* x, uint32_t heads, uint32_t tokens) const;
  void AddQk(uint32_t layer, const float* q, const float* k, uint32_t tokens);

  const uint32_t heads_, kv_heads_, head_dim_;
  const bool qk_rotated_;
  const std::vector<float> inverse_frequency_;
  std::vector<double> q_, qk_;  // [layers, heads, head_dim], sums
  std::vector<double> k_;       // [layers, kv_heads, head_dim]
};

}  // namespace sparsekv
