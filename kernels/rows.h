#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/row_layout.h"

namespace sparsekv {

// The token rows of one sequence in one layer, as operations see them. Token t lies in block
// blocks[t / kBlockTokens]. Nothing is owned; the pool may be the shared segment.
struct RowTable {
  std::byte* layer_base = nullptr;   // pool + layer * layout->layer_stride()
  const uint32_t* blocks = nullptr;  // [ceil(tokens / kBlockTokens)], each < layout->blocks
  const RowLayout* layout = nullptr;

  std::byte* Row(uint32_t kv_head, uint32_t token) const {
    return layer_base + blocks[token / kBlockTokens] * layout->block_stride() +
           layout->RowOffset(kv_head, token % kBlockTokens);
  }
};

// One sequence's tokens inside a step: tokens [first, first + tokens) of the step's flat arrays are
// the sequence's positions [position, position + tokens).
struct StepSpan {
  uint32_t first = 0;
  uint32_t tokens = 0;
  uint32_t position = 0;
};

// Writes K and V of the step's tokens into their rows, rounded to nearest even to layout->dtype.
struct AppendRowsArgs {
  struct Item {
    StepSpan span;
    RowTable rows;
    // Where given: one token, whose row of KV head h goes to row slots[h * slot_stride] instead.
    const uint32_t* slots = nullptr;
    size_t slot_stride = 0;

    std::byte* Row(uint32_t kv_head, uint32_t t) const {
      return rows.Row(kv_head, slots ? slots[kv_head * slot_stride] : span.position + t);
    }
  };
  const float* k = nullptr;  // [tokens, kv_heads, head_dim], after RoPE
  const float* v = nullptr;  // [tokens, kv_heads, head_dim]
  std::span<const Item> items;
};

}  // namespace sparsekv
