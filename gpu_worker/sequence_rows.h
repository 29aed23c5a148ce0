#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "kv_store/client.h"

namespace sparsekv {

// The row blocks that the store granted to one sequence, and the proof that they are still its own
// (promise P3). Belongs to the device thread; the segment outlives it.
class SequenceRows {
 public:
  SequenceRows(kv_store::SegmentClient* segment, uint64_t owner, std::vector<uint32_t> blocks,
               std::vector<uint32_t> generations)
      : segment_(segment),
        owner_(owner),
        blocks_(std::move(blocks)),
        generations_(std::move(generations)) {}

  // Before tokens [position, position + tokens) are written. Where they enter a new block, the
  // whole table is checked against the store's and the rows' own stamps, and the new block is
  // stamped in every layer. DATA_LOSS: a block is not this sequence's any more.
  absl::Status Prepare(uint32_t position, uint32_t tokens);

  // After those tokens' rows are complete in every layer: raises the rows_valid watermarks.
  void Publish(uint32_t position, uint32_t tokens);

  const std::vector<uint32_t>& blocks() const { return blocks_; }
  uint64_t bytes() const { return blocks_.size() * segment_->layout().bytes_per_block(); }
  uint32_t capacity_tokens() const { return static_cast<uint32_t>(blocks_.size()) * kBlockTokens; }

 private:
  absl::Status CheckTable(uint32_t written_tokens) const;

  kv_store::SegmentClient* segment_;
  uint64_t owner_;
  std::vector<uint32_t> blocks_;
  std::vector<uint32_t> generations_;
  uint32_t stamped_blocks_ = 0;  // blocks [0, stamped_blocks_) carry our stamps
};

}  // namespace sparsekv
