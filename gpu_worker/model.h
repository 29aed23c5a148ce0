#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "gpu_worker/budget.h"
#include "gpu_worker/channel_config.h"
#include "gpu_worker/checkpoint/model_config.h"
#include "gpu_worker/checkpoint/weights.h"
#include "gpu_worker/scratch.h"
#include "kernels/backend.h"

namespace sparsekv {

// One sequence's share of a forward pass: a chunk of its prompt, or one token.
struct StepItem {
  std::span<const uint32_t> ids;     // the step's tokens of this sequence
  uint32_t position = 0;             // of ids[0]
  const uint32_t* blocks = nullptr;  // row blocks for every position up to the last of ids
  std::byte* const* label_pages =
      nullptr;       // pages for the same positions; null: no labels are kept
  RowBudget budget;  // not dense: ids.size() == 1 and label_pages given

  // Rows that one (layer, KV head) attends for the item's tokens together.
  uint64_t rows_per_head() const;
};

// The forward pass of a Llama-architecture checkpoint over token rows in a pool of row blocks and
// labels on the device. Belongs to the device thread; what it names outlives it. Holds no state of
// any sequence.
class Model {
 public:
  struct Options {
    const ModelConfig* config = nullptr;
    const Weights* weights = nullptr;
    const ChannelConfig* channels = nullptr;  // null: dense attention only
    Backend* backend = nullptr;
    Scratch scratch;
    RowLayout row_layout;
    std::byte* row_pool = nullptr;  // row_layout.pool_bytes()
  };
  explicit Model(const Options& options);

  // Computes the step's tokens of every item, writes their rows and labels, and leaves the final
  // residual stream in place, items in order. REQUIRES: at most scratch.max_tokens tokens.
  void Forward(std::span<const StepItem> items);

  // Logits of the tokens [first, first + tokens) of the last Forward, [tokens, vocab_size], valid
  // until the next call. REQUIRES: tokens <= scratch.max_logit_rows.
  const float* Logits(uint32_t first, uint32_t tokens);

  // Calibration: sees every layer's q [tokens, heads, head_dim] and k [tokens, kv_heads, head_dim]
  // after rotary embedding.
  using QkObserver =
      std::function<void(uint32_t layer, const float* q, const float* k, uint32_t tokens)>;
  void set_qk_observer(QkObserver observer) { observer_ = std::move(observer); }

  // Called after every layer of a forward pass, so that a long one shows that it goes on.
  void set_progress(std::function<void()> progress) { progress_ = std::move(progress); }

  // Tests: sees every selection, [kv_heads][count] ascending, of item `item` in `layer`.
  using SelectionObserver = std::function<void(uint32_t layer, uint32_t item, uint32_t kv_head,
                                               std::span<const uint32_t> selection)>;
  void set_selection_observer(SelectionObserver observer) { on_selection_ = std::move(observer); }

  const ModelConfig& config() const { return *config_; }
  const LabelLayout& label_layout() const { return label_layout_; }
  bool can_select() const { return channels_ != nullptr; }
  Backend& backend() { return *backend_; }

 private:
  void Attention(uint32_t layer, std::span<const StepItem> items);
  void Mlp(uint32_t layer);
  void Norm(const float* x, uint32_t tokens, const WeightView& weight, float* out);
  void Project(const float* x, uint32_t tokens, const WeightView& weight, float* y,
               bool accumulate = false);

  void Append(uint32_t layer, std::span<const StepItem> items);
  void AttendAll(uint32_t layer, std::span<const StepItem> items);
  void AttendDense(uint32_t layer, std::span<const StepItem> items);
  size_t SelectionRound(std::span<const StepItem> items, size_t from, uint32_t* stride);
  void SelectAndAttend(uint32_t layer, std::span<const StepItem> items, size_t from, size_t to,
                       uint32_t stride);
  RowTable Rows(uint32_t layer, const StepItem& item) const;
  LabelTable Labels(uint32_t layer, const StepItem& item) const;
  StepSpan Span(std::span<const StepItem> items, size_t i) const;

  const ModelConfig* config_;
  const Weights* weights_;
  const ChannelConfig* channels_;
  Backend* backend_;
  Scratch scratch_;
  RowLayout row_layout_;
  std::byte* row_pool_;
  LabelLayout label_layout_;
  std::vector<float> inverse_frequency_;

  // Of the step in progress.
  uint32_t tokens_ = 0;
  std::vector<uint32_t> ids_;        // [tokens_]
  std::vector<uint32_t> positions_;  // [tokens_]
  std::vector<uint32_t> first_;      // [items], index of each item's first token

  std::function<void()> progress_;
  QkObserver observer_;
  SelectionObserver on_selection_;
};

}  // namespace sparsekv
