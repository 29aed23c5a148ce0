#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cli/eval/policies/head_policy.h"

namespace sparsekv {

// Statistics of a prefix's attention, gathered while it is computed: what policies that judge
// tokens by the past begin with. One thread.
class PromptObserver {
 public:
  // The prompt's last queries whose attention is kept one by one.
  static constexpr uint32_t kLastQueries = 64;

  struct Options {
    bool attention = false;       // PromptStatistics::attention
    uint32_t stride = 1;          // of the queries that count for it
    bool last_attention = false;  // PromptStatistics::last_attention
    unsigned threads = 1;         // over KV heads
  };
  // `shapes`: one per layer and KV head.
  PromptObserver(const Options& options, std::vector<HeadShape> shapes, uint32_t kv_heads);

  void Begin(uint32_t prefix_tokens);
  // A chunk's queries of one layer, [tokens, kv_heads * group, head_dim], at positions `position`
  // and on; `keys`, [kv_heads], have its keys already.
  void Observe(uint32_t layer, const float* q, uint32_t position, uint32_t tokens,
               std::span<const KeyHistory> keys);

  // Of one head, [layers, kv_heads]; valid until Begin.
  std::span<const float> attention(size_t head) const { return attention_[head]; }
  std::span<const std::vector<float>> last_attention(size_t head) const { return last_[head]; }

 private:
  void ObserveHead(size_t head, const float* q, uint32_t position, uint32_t tokens,
                   const KeyHistory& keys);

  const Options options_;
  const std::vector<HeadShape> shapes_;
  const uint32_t kv_heads_;
  uint32_t prefix_ = 0;
  std::vector<std::vector<float>> attention_;          // [layers, kv_heads][prefix]
  std::vector<std::vector<std::vector<float>>> last_;  // [layers, kv_heads][queries][present]
};

}  // namespace sparsekv
