#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/limits.h"

namespace sparsekv {

// Tokens that are attended whatever their scores: the first kSinkTokens, the kRecentTokens before
// the current one, and the current one (token tokens-1). In a window only tokens from `first` on
// are there, sinks or not.
constexpr uint32_t AlwaysSetSize(uint32_t tokens, uint32_t first = 0) {
  const uint32_t sinks = first < kSinkTokens ? kSinkTokens - first : 0;
  const uint32_t size = sinks + kRecentTokens + 1;
  return tokens - first < size ? tokens - first : size;
}

// The exact selection of each KV head: the always-set and the highest scores of the rest, ties by
// the lower index, `count` indices in ascending order. NaN scores rank below every number.
// REQUIRES: AlwaysSetSize(tokens, first) <= count <= tokens - first.
struct SelectArgs {
  struct Item {
    const float* scores = nullptr;  // [kv_heads, score_stride]
    uint32_t tokens = 0;
    uint32_t count = 0;
    uint32_t* selection = nullptr;  // [kv_heads, selection_stride], written for i < count
    uint32_t first = 0;             // tokens before it are not there: FirstInWindow
  };
  uint32_t kv_heads = 0;
  size_t score_stride = 0;
  size_t selection_stride = 0;
  std::span<const Item> items;
};

}  // namespace sparsekv
