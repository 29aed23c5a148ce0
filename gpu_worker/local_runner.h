#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu_worker/device.h"
#include "gpu_worker/sequence_rows.h"
#include "kv_store/client.h"

namespace sparsekv {

// Sequences run in this process, without a store or a coordinator: what `sparsekv logits`,
// `calibrate` and `bench decode` use, and what tests compare services with. The segment is local
// memory. One thread.
class LocalRunner {
 public:
  struct Options {
    uint32_t max_tokens = 0;  // of each sequence
    uint32_t sequences = 1;
    uint32_t chunk_tokens = 512;
    unsigned threads = 0;
    BackendKind backend = BackendKind::kCpu;
    bool graphs = true;          // of a CUDA device
    bool early_launch = true;    // likewise
    bool exact_prompts = false;  // likewise
    bool mirror_rows = false;    // likewise
    // Device::Options, both
    std::function<std::unique_ptr<Backend>()> make_backend;
    size_t share_chunk_bytes = size_t{256} << 20;
    // How rows are dealt with; with `rows.in_place` the rest says nothing.
    RowMode rows;
    RowPlacement placement = RowPlacement::kOffload;
    uint32_t selection = 0;  // rows of the largest selection to come; 0: none selects
    LinkSpec link;
    bool gather = false;  // predictions through the store's threads, which this process then has
    // Steps that select sample what their selections hold, and take as many rows as the target
    // needs, up to their budgets; 0: they take the budgets. Nothing: nobody asks.
    std::optional<double> recall_target;
    Timeline* timeline = nullptr;
  };
  // `files` outlives the runner.
  static absl::StatusOr<std::unique_ptr<LocalRunner>> Make(const ModelFiles& files,
                                                           const Options& options);
  ~LocalRunner();

  // Computes the next tokens of the first sequence. A budget that is not dense needs single tokens
  // and keeps labels. REQUIRES: ids.size() <= chunk_tokens, position() + ids.size() <= max_tokens;
  // offloaded sequences: single tokens.
  void Forward(std::span<const uint32_t> ids, RowBudget budget);

  struct Step {
    uint32_t sequence = 0;
    std::span<const uint32_t> ids;
    RowBudget budget;
  };
  // The same for some sequences in one pass, each at most once. `draw`: every step is one token,
  // and the one with the highest logit after it is in drawn().
  void ForwardBatch(std::span<const Step> steps, bool draw = false);
  const std::vector<SampledToken>& drawn() const { return drawn_; }  // [steps]
  // A whole prompt, from position 0, the way the placement asks for; leaves the logits of its last
  // token.
  const float* Prefill(uint32_t sequence, std::span<const uint32_t> ids);
  // Takes over another runner's computed tokens, rows and labels, of sequences of the same number.
  // REQUIRES: the same files and max_tokens.
  void CopyFrom(const LocalRunner& other);
  // Goes on at `position`, whatever the rows before it hold. REQUIRES: nothing was computed yet.
  void Seek(uint32_t sequence, uint32_t position);

  // Logits of the last pass's token i, [vocab_size], valid until the next call.
  const float* Logits(uint32_t i);

  void Reset() { Rewind(0); }
  // Forgets the first sequence's tokens from `position` on.  REQUIRES: position <= position().
  void Rewind(uint32_t position);
  uint32_t position(uint32_t sequence = 0) const { return sequences_[sequence].position; }
  Model& model() { return *device_.model; }
  Device& device() { return device_; }
  kv_store::SegmentClient& segment() { return *segment_; }
  // Rows and labels of a sequence, for a benchmark that makes them up.
  RowTable HostRows(uint32_t layer, uint32_t sequence) const;
  LabelTable Labels(uint32_t layer, uint32_t sequence) const;
  const RowCounts& counts(uint32_t sequence = 0) const { return sequences_[sequence].counts; }
  // Of Options::recall_target, from the first step that selected on; null before it.
  const SequenceRecall* recall(uint32_t sequence = 0) const;

 private:
  struct Sequence {
    uint32_t position = 0;
    std::vector<uint32_t> generations;
    std::unique_ptr<SequenceRows> rows;
    TableSpace tables;
    std::vector<std::byte*> label_pages;
    RowSets device;
    const uint32_t* block_table = nullptr;
    std::byte* const* label_table = nullptr;
    RowCounts counts;
    std::optional<SequenceRecall> recall;
  };

  LocalRunner() = default;
  absl::Status AddSequences(const ModelFiles& files, const Options& options);
  StepItem Item(const Step& step);
  // Runs one pass as a step.
  void RunSteps(std::span<const Step> steps, StepKind kind, bool draw);
  void Run(std::span<const StepItem> items, StepKind kind, bool draw);

  Options options_;
  std::unique_ptr<kv_store::SegmentClient> segment_;
  Device device_;
  std::vector<Sequence> sequences_;
  StepKind kind_ = StepKind::kPrompt;  // of the last pass
  std::vector<SampledToken> drawn_;
  std::vector<float> logits_;  // fetched by Logits
};

}  // namespace sparsekv
