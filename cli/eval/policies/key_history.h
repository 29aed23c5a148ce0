#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sparsekv {

// The keys of one (layer, KV head) after rotary embedding, as they read back from their rows:
// channel by channel, so that scores run over contiguous tokens. One thread writes.
class KeyHistory {
 public:
  KeyHistory(uint32_t head_dim, uint32_t capacity)
      : head_dim_(head_dim), capacity_(capacity), values_(size_t{head_dim} * capacity) {}

  uint32_t head_dim() const { return head_dim_; }
  uint32_t tokens() const { return tokens_; }
  uint32_t capacity() const { return capacity_; }
  const float* Channel(uint32_t c) const { return values_.data() + size_t{c} * capacity_; }
  float At(uint32_t token, uint32_t c) const { return Channel(c)[token]; }

  void Append(const float* key);  // [head_dim].  REQUIRES: room
  void Truncate(uint32_t tokens) { tokens_ = tokens < tokens_ ? tokens : tokens_; }

 private:
  uint32_t head_dim_, capacity_;
  uint32_t tokens_ = 0;
  std::vector<float> values_;  // [head_dim, capacity]
};

}  // namespace sparsekv
