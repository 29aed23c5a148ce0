#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/attention.h"

namespace sparsekv::cpu {

// Up to how many rows of a block what is loaded is widened in registers, which is faster then than
// float32 copies of the tile.
inline constexpr size_t kFewRows = 8;
// Blocks of a task, tile by tile in turn, at most.
inline constexpr size_t kMaxInTurn = 2;

// A unit of attention: neighbouring query tokens of one item that read the same KV head. Its rows
// are the tokens' query heads, row = token * group + head of the group. All rows share each K and V
// row that is loaded.
struct AttendBlock {
  const AttendArgs* args = nullptr;
  const AttendArgs::Item* item = nullptr;
  uint32_t kv_head = 0;
  uint32_t first_token = 0;  // of the item
  uint32_t tokens = 0;

  uint32_t rows() const { return tokens * args->group; }

  uint32_t Position(uint32_t t) const { return item->span.position + first_token + t; }

  // The list of the block's token t has the entries [Begin(t), End(t)): positions, or places in a
  // selection from AttendStart on. Both grow with t (causal, a window).
  uint32_t Begin(uint32_t t) const {
    if (item->selection != nullptr) return AttendStart(Position(t), args->window);
    return FirstInWindow(Position(t), args->window);
  }
  uint32_t End(uint32_t t) const {
    return item->selection != nullptr ? Begin(t) + item->count : Position(t) + 1;
  }
  uint32_t end() const { return End(tokens - 1); }
  uint32_t first_split() const { return Begin(0) / kAttendSplit; }
  uint32_t splits() const { return (end() + kAttendSplit - 1) / kAttendSplit - first_split(); }

  // The first of the block's tokens whose list ends behind the entry. REQUIRES: entry < end().
  uint32_t FirstTokenWith(uint32_t entry) const {
    const uint32_t shortest = End(0);
    return entry < shortest ? 0 : entry + 1 - shortest;
  }
  // How many of the block's tokens have lists that begin before the entry: the first ones.
  uint32_t TokensBefore(uint32_t entry) const {
    if (item->selection != nullptr || args->window == 0) return tokens;
    const uint64_t end = uint64_t{entry} + args->window - 1;  // positions before it
    if (end <= Position(0)) return 0;
    return end - Position(0) < tokens ? static_cast<uint32_t>(end - Position(0)) : tokens;
  }

  // rows[i - begin] = where the row of the list's entry i lies, for i in [begin, end).
  void FindRows(uint32_t begin, uint32_t end, const std::byte** rows) const {
    const RowLayout& layout = *item->rows.layout;
    const std::byte* base = item->rows.layer_base + layout.RowOffset(kv_head, 0);
    const size_t block_stride = layout.block_stride();
    const size_t row_bytes = layout.row_bytes();
    const auto row_of = [&](uint32_t token) {
      return base + item->rows.blocks[token / kBlockTokens] * block_stride +
             token % kBlockTokens * row_bytes;
    };
    if (item->selection != nullptr) {
      const uint32_t* list = item->selection + kv_head * args->selection_stride;
      const uint32_t start = Begin(0);  // of the selection's only token
      if (item->offloaded) {
        for (uint32_t i = begin; i < end; ++i)
          *rows++ = item->SelectedRow(kv_head, list[i - start]);
        return;
      }
      for (uint32_t i = begin; i < end; ++i) {
        uint32_t token = list[i - start];
        asm("" : "+r"(token));  // one by one: products of 64 bits cost more in vectors
        *rows++ = row_of(token);
      }
      return;
    }
    for (uint32_t i = begin; i < end;) {
      const std::byte* row = row_of(i);
      const uint32_t next_block = (i / kBlockTokens + 1) * kBlockTokens;
      for (; i < end && i < next_block; ++i, row += row_bytes) *rows++ = row;
    }
  }

  // Where the first head of the block's token t lies in q and out.
  size_t HeadOffset(uint32_t t) const {
    const size_t token = size_t{item->span.first} + first_token + t;
    return (token * args->kv_heads + kv_head) * args->group * args->head_dim;
  }
};

// The running softmax of a block's rows: over one split, or over all splits so far.
struct AttendPartial {
  float* sums = nullptr;     // [rows, padded]: weights times values
  float* maximum = nullptr;  // [rows]
  float* total = nullptr;    // [rows]: sum of weights

  static size_t Floats(size_t rows, size_t padded) { return rows * (padded + 2); }

  AttendPartial() = default;
  AttendPartial(float* memory, size_t rows, size_t padded)
      : sums(memory), maximum(memory + rows * padded), total(maximum + rows) {}
};

}  // namespace sparsekv::cpu
