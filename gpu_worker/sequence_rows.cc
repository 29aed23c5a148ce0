#include "gpu_worker/sequence_rows.h"

#include <algorithm>

#include "base/check.h"

namespace sparsekv {

absl::Status SequenceRows::Prepare(uint32_t position, uint32_t tokens) {
  CHECK_LE(position + tokens, capacity_tokens());
  const uint32_t needed = (position + tokens + kBlockTokens - 1) / kBlockTokens;
  if (needed <= stamped_blocks_) return absl::OkStatus();
  if (absl::Status status = CheckTable(position); !status.ok()) return status;
  for (; stamped_blocks_ < needed; ++stamped_blocks_) {
    for (uint32_t layer = 0; layer < segment_->layout().layers; ++layer) {
      segment_->StampRows(layer, blocks_[stamped_blocks_], owner_, generations_[stamped_blocks_],
                          stamped_blocks_ * kBlockTokens);
    }
  }
  return absl::OkStatus();
}

absl::Status SequenceRows::CheckTable(uint32_t written_tokens) const {
  for (uint32_t i = 0; i < blocks_.size(); ++i) {
    const uint32_t first = i * kBlockTokens;
    absl::Status status = segment_->CheckBlock(blocks_[i], owner_, generations_[i], first);
    if (!status.ok()) return status;
    if (first >= written_tokens) continue;
    const uint32_t rows = std::min(kBlockTokens, written_tokens - first);
    for (uint32_t layer = 0; layer < segment_->layout().layers; ++layer) {
      status = segment_->CheckRows(layer, blocks_[i], owner_, generations_[i], first, rows);
      if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

void SequenceRows::Publish(uint32_t position, uint32_t tokens) {
  const uint32_t end = position + tokens;
  for (uint32_t i = position / kBlockTokens; i * kBlockTokens < end; ++i) {
    const uint32_t rows = std::min(kBlockTokens, end - i * kBlockTokens);
    for (uint32_t layer = 0; layer < segment_->layout().layers; ++layer) {
      segment_->PublishRows(layer, blocks_[i], rows);
    }
  }
}

}  // namespace sparsekv
