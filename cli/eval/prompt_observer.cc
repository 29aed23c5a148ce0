#include "cli/eval/prompt_observer.h"

#include <algorithm>
#include <thread>

#include "cli/eval/policies/scores.h"

namespace sparsekv {

PromptObserver::PromptObserver(const Options& options, std::vector<HeadShape> shapes,
                               uint32_t kv_heads)
    : options_(options),
      shapes_(std::move(shapes)),
      kv_heads_(kv_heads),
      attention_(shapes_.size()),
      last_(shapes_.size()) {}

void PromptObserver::Begin(uint32_t prefix_tokens) {
  prefix_ = prefix_tokens;
  for (auto& attention : attention_) attention.assign(options_.attention ? prefix_ : 0, 0.0f);
  for (auto& last : last_) last.clear();
}

void PromptObserver::Observe(uint32_t layer, const float* q, uint32_t position, uint32_t tokens,
                             std::span<const KeyHistory> keys) {
  if (!options_.attention && !options_.last_attention) return;
  const auto some = [&](uint32_t first, uint32_t step) {
    for (uint32_t h = first; h < kv_heads_; h += step) {
      ObserveHead(size_t{layer} * kv_heads_ + h, q, position, tokens, keys[h]);
    }
  };
  const uint32_t threads = std::clamp(options_.threads, 1u, kv_heads_);
  std::vector<std::jthread> others;
  for (uint32_t i = 1; i < threads; ++i) others.emplace_back([&, i] { some(i, threads); });
  some(0, threads);
}

void PromptObserver::ObserveHead(size_t head, const float* q, uint32_t position, uint32_t tokens,
                                 const KeyHistory& keys) {
  const HeadShape& shape = shapes_[head];
  const size_t width = size_t{shape.group} * shape.head_dim;
  std::vector<float> attention;
  for (uint32_t t = 0; t < tokens; ++t) {
    const uint32_t at = position + t;
    const bool last = options_.last_attention && at + kLastQueries >= prefix_;
    const bool counts = options_.attention && (at + 1) % options_.stride == 0;
    if (!last && !counts) continue;
    GroupAttention(q + t * kv_heads_ * width + shape.kv_head * width, keys, at + 1, shape,
                   &attention);
    for (uint32_t s = 0; counts && s <= at; ++s) {
      attention_[head][s] += attention[s] * static_cast<float>(options_.stride);
    }
    if (last) last_[head].push_back(attention);
  }
}

}  // namespace sparsekv
