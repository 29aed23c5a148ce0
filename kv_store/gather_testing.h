#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "kv_store/client.h"

// For tests: sequences whose every row is known, and a store's gather side with no store around it.
namespace sparsekv::kv_store {

inline constexpr uint64_t kTestFingerprint = 0xabc;

// What row (layer, owner, KV head, position) holds: one number, in every word.
inline uint64_t RowValue(uint32_t layer, uint64_t owner, uint32_t kv_head, uint32_t position) {
  return (owner << 40) + (uint64_t{layer} << 34) + (uint64_t{kv_head} << 28) + position + 1;
}

// Writes the row word by word, so that a copy that is made meanwhile is a mixture of whole words.
inline void WriteRow(std::byte* row, size_t row_bytes, uint64_t value) {
  for (size_t i = 0; i < row_bytes / sizeof value; ++i) {
    std::atomic_ref(reinterpret_cast<uint64_t*>(row)[i]).store(value, std::memory_order_relaxed);
  }
}
inline bool RowIs(const std::byte* row, size_t row_bytes, uint64_t value) {
  for (size_t i = 0; i < row_bytes / sizeof value; ++i) {
    if (reinterpret_cast<const uint64_t*>(row)[i] != value) return false;
  }
  return true;
}

// Fills the first `tokens` rows of a grant in every layer and KV head, as a worker would.
inline void WriteSequence(SegmentClient& segment, const BlockGrant& grant, uint64_t owner,
                          uint32_t tokens) {
  const RowLayout& layout = segment.layout();
  for (uint32_t layer = 0; layer < layout.layers; ++layer) {
    for (uint32_t i = 0; i * kBlockTokens < tokens; ++i) {
      const uint32_t block = grant.blocks[i], first = i * kBlockTokens;
      segment.StampRows(layer, block, owner, grant.generations[i], first);
      const uint32_t rows = std::min(kBlockTokens, tokens - first);
      for (uint32_t head = 0; head < layout.kv_heads; ++head) {
        for (uint32_t token = 0; token < rows; ++token) {
          WriteRow(
              segment.rows() + layout.BlockOffset(layer, block) + layout.RowOffset(head, token),
              layout.row_bytes(), RowValue(layer, owner, head, first + token));
        }
      }
      segment.PublishRows(layer, block, rows);
    }
  }
}

inline RowRef RefOf(const BlockGrant& grant, uint32_t kv_head, uint32_t position) {
  return {.block = grant.blocks[position / kBlockTokens],
          .generation = grant.generations[position / kBlockTokens],
          .kv_head = static_cast<uint16_t>(kv_head),
          .token = static_cast<uint16_t>(position % kBlockTokens)};
}

}  // namespace sparsekv::kv_store
