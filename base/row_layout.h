#pragma once

#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "base/dtype.h"
#include "base/limits.h"

namespace sparsekv {

// Where a token row lies in a pool of row blocks. A pool is [layer][block][kv_head][token][K|V]:
// one block id names kBlockTokens tokens in every layer. A row is K then V of one (layer, KV head,
// token), 2 * head_dim values of `dtype`. Blocks start at multiples of a page (4096 B), so that a
// block can be given back to the kernel, checksummed or registered alone. Pure geometry: no memory
// is owned here.
struct RowLayout {
  uint32_t layers = 0;
  uint32_t kv_heads = 0;  // of this rank
  uint32_t head_dim = 0;
  DType dtype = DType::kF32;
  uint32_t blocks = 0;

  static constexpr size_t kPage = 4096;

  size_t row_bytes() const { return size_t{2} * head_dim * SizeOf(dtype); }
  size_t head_stride() const { return row_bytes() * kBlockTokens; }  // between KV heads of a block
  size_t block_stride() const { return (head_stride() * kv_heads + kPage - 1) / kPage * kPage; }
  size_t layer_stride() const { return block_stride() * blocks; }
  size_t pool_bytes() const { return layer_stride() * layers; }
  size_t bytes_per_block() const { return block_stride() * layers; }  // one block id, all layers

  // Byte offset of the block's first row from the pool's start.
  size_t BlockOffset(uint32_t layer, uint32_t block) const {
    CHECK_LT(layer, layers);
    CHECK_LT(block, blocks);
    return layer * layer_stride() + block * block_stride();
  }
  // Byte offset of a row from the start of its block.
  size_t RowOffset(uint32_t kv_head, uint32_t token_in_block) const {
    return kv_head * head_stride() + token_in_block * row_bytes();
  }

  friend bool operator==(const RowLayout&, const RowLayout&) = default;
};

}  // namespace sparsekv
