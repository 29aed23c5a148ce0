#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gpu_worker/budget.h"
#include "gpu_worker/device.h"
#include "gpu_worker/sequence_recall.h"
#include "gpu_worker/sequence_rows.h"
#include "sparsekv/v1/worker.pb.h"

namespace sparsekv {

// One sequence on this worker, from the plan that starts it to the report of its end. Belongs to
// the device thread.
class Sequence {
 public:
  using Clock = std::chrono::steady_clock;

  // Checks the start against what the worker has, and takes label pages where the sequence selects
  // and device rows where its placement wants them.
  // INVALID_ARGUMENT, FAILED_PRECONDITION or RESOURCE_EXHAUSTED, with field and value.
  static absl::StatusOr<std::unique_ptr<Sequence>> Create(const v1::SequenceStart& start,
                                                          kv_store::SegmentClient* segment,
                                                          Device* device);
  ~Sequence();
  Sequence(const Sequence&) = delete;
  Sequence& operator=(const Sequence&) = delete;

  uint64_t id() const { return start_.sequence_id(); }
  bool prefilling() const { return computed_ < prompt_tokens_; }
  uint32_t computed() const { return computed_; }
  uint32_t prompt_tokens() const { return prompt_tokens_; }
  uint32_t generated() const { return static_cast<uint32_t>(ids_.size()) - prompt_tokens_; }

  // The next `tokens` tokens as a step's item. A selection is made only once the prompt is there.
  StepItem Item(uint32_t tokens);
  // Whether its prompt must go through the device's prefill buffer, one layer at a time.
  bool prefills_by_layer() const { return prefilling() && rows_on_device_.device && !resident(); }
  bool resident() const { return rows_on_device_.device && rows_on_device_.resident(); }
  // The step's rows may be written / are complete.
  absl::Status Prepare(uint32_t tokens) { return rows_.Prepare(computed_, tokens); }
  void Advance(uint32_t tokens);

  // How the token after the last one is drawn.
  SampleArgs Sampling(const float* logits, uint32_t vocab) const;
  // Takes a drawn token; the reason says whether it ended the sequence (UNSPECIFIED: it goes on).
  v1::FinishReason Accept(const SampledToken& token, v1::TokenEvent* event);

  void FillEnd(v1::FinishReason reason, v1::SequenceEnd* end) const;

 private:
  Sequence(const v1::SequenceStart& start, kv_store::SegmentClient* segment, Device* device);
  absl::Status TakeDeviceMemory();
  absl::Status SetRecall();
  void FillRecall(v1::Sparsity* sparsity) const;

  v1::SequenceStart start_;
  uint32_t prompt_tokens_;
  std::vector<uint32_t> ids_;  // prompt, then generated
  uint32_t computed_ = 0;      // positions whose rows are in the segment
  SequenceRows rows_;
  std::vector<uint32_t> generations_;
  Device* const device_;
  TableSpace tables_;
  std::vector<std::byte*> label_pages_;
  RowSets rows_on_device_;
  // Blocks and label pages as operations read them.
  const uint32_t* block_table_ = nullptr;
  std::byte* const* label_table_ = nullptr;
  RowBudget budget_;

  std::optional<SequenceRecall> recall_;  // where it selects, and its recall can be sampled

  RowCounts counts_;
  Clock::time_point started_ = Clock::now();
  Clock::time_point first_token_{};
  Clock::time_point last_token_{};
};

}  // namespace sparsekv
