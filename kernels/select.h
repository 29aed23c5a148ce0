#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/limits.h"

namespace sparsekv {

// Tokens that are attended whatever their scores: the first kSinkTokens, the kRecentTokens before
// the current one, and the current one (token tokens-1).
constexpr uint32_t AlwaysSetSize(uint32_t tokens) {
  const uint32_t size = kSinkTokens + kRecentTokens + 1;
  return tokens < size ? tokens : size;
}

// The exact selection of each KV head: the always-set and the highest scores of the rest, ties by
// the lower index, `count` indices in ascending order. NaN scores rank below every number.
// REQUIRES: AlwaysSetSize(tokens) <= count <= tokens.
struct SelectArgs {
  struct Item {
    const float* scores = nullptr;  // [kv_heads, score_stride]
    uint32_t tokens = 0;
    uint32_t count = 0;
    uint32_t* selection = nullptr;  // [kv_heads, selection_stride], written for i < count
  };
  uint32_t kv_heads = 0;
  size_t score_stride = 0;
  size_t selection_stride = 0;
  std::span<const Item> items;
};

}  // namespace sparsekv
