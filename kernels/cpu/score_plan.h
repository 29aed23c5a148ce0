#pragma once

#include <cstdint>

#include "kernels/labels.h"

namespace sparsekv::cpu {

// Pages of a task, and of a partial normaliser of kSoftmaxMass.
inline constexpr uint32_t kTaskPages = 64;

// One (item, KV head): what all its tasks share.
struct ScoreJob {
  const ScoreLabelsArgs* args = nullptr;
  const ScoreLabelsArgs::Item* item = nullptr;
  uint32_t kv_head = 0;
  const float* query = nullptr;       // [group, channels], scaled for the pooling
  float* partials = nullptr;          // kSoftmaxMass: [chunks, group, 2] = maximum, sum of a chunk
  const float* normaliser = nullptr;  // kSoftmaxMass: [group, 2] = maximum, 1 / sum over all tokens

  uint32_t pages() const { return (item->tokens + kBlockTokens - 1) / kBlockTokens; }
  uint32_t chunks() const { return (pages() + kTaskPages - 1) / kTaskPages; }
};

}  // namespace sparsekv::cpu
