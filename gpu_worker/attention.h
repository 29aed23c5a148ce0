#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "gpu_worker/channel_config.h"
#include "gpu_worker/checkpoint/model_config.h"
#include "gpu_worker/mass_curve.h"
#include "gpu_worker/query_predictor.h"
#include "gpu_worker/row_fetcher.h"
#include "gpu_worker/scratch.h"
#include "gpu_worker/step_item.h"
#include "gpu_worker/timeline.h"
#include "kernels/backend.h"

namespace sparsekv {

// What a layer does between its projections: append rows and labels, select, have the rows there,
// attend. Belongs to the device thread; holds no state of any sequence.
//
// Rows are attended in one of four places: in the segment, where they lie; on the device at their
// positions (resident; or one layer at a time, a dense offloaded sequence); on the device in slots
// (offloaded, selected; what has no slot, on a device of its own, in the segment); or in the
// prefill buffer, one layer's rows of a prompt. What is attended, and in which order it is summed,
// is the same everywhere.
class Attention {
 public:
  struct Options {
    const ModelConfig* config = nullptr;
    const ChannelConfig* channels = nullptr;  // null: dense attention only
    const uint16_t* channel_table = nullptr;  // its label channels on the device, [layers][...]
    Backend* backend = nullptr;
    Scratch scratch;
    RowLayout row_layout;  // the segment's pool
    std::byte* row_pool = nullptr;
    // In the same layout: rows of offloaded sequences are written there too. Null: nowhere.
    std::byte* mirror_pool = nullptr;
    RowFetcher* fetcher = nullptr;              // null: rows are attended where they lie
    const QueryPredictor* predictor = nullptr;  // null: no predictions
    RowLayout prefill_layout;                   // one layer
    std::byte* prefill = nullptr;               // prefill_layout.pool_bytes()
    const uint32_t* prefill_blocks = nullptr;   // 0, 1, ...: its blocks in order, on the device
    float* row_mass = nullptr;  // [max_context]; null: recall is not sampled (StepItem::recall)
    Timeline* timeline = nullptr;
  };
  explicit Attention(const Options& options);

  // The items of a forward pass, and the index of each one's first token. Both outlive the step.
  void BeginPass(std::span<const StepItem> items, std::span<const uint32_t> first);
  // After the last pass of a step, inside it: asks for what the device noted.
  void FetchNotes();
  // The step is over: counts that.
  void EndStep();

  // Whether predictions want to see the inputs of this step's layers.
  bool predicts() const;
  // Keeps the input of a layer, [tokens, hidden_size], for predictions and comparisons.
  void KeepInput(uint32_t layer, const float* hidden, uint32_t tokens);
  // Starts to fetch what layer + 1 will probably select, judged by the inputs of `layer` and of the
  // layer before, which were kept. Beside what follows, where the device has lanes. Fetches nothing
  // where the policy of layer + 1 says so.
  void Predict(uint32_t layer, std::span<const uint32_t> positions);

  // Rotates scratch.q and .k, and writes rows and labels of the step's tokens.
  void Append(uint32_t layer, std::span<const uint32_t> positions);
  // From scratch.q, .k, .v, after that, to scratch.attended.
  void Run(uint32_t layer);

  // One per layer; none = no prediction.
  void set_policies(std::vector<LayerPolicy> policies) { policies_ = std::move(policies); }
  // This step looks at how good predictions are, which costs a little: LayerCounts::predicted...
  void set_measure(bool measure) { measure_ = measure; }

  // Tests and benchmarks, where the device's memory is the host's: sees every list of rows when it
  // was chosen, ascending, predicted or true, and may put another of the same length in its place.
  using SelectionHook = std::function<void(uint32_t layer, uint32_t item, uint32_t kv_head,
                                           bool predicted, std::span<uint32_t> list)>;
  void set_selection_hook(SelectionHook hook) { on_selection_ = std::move(hook); }

  // Evaluation, where the device's memory is the host's and rows are attended where they lie: takes
  // the place of selecting and attending, one token of an item at a time. q and out: [heads,
  // head_dim]; the token's own row is written.
  using AttendHook = std::function<void(uint32_t layer, const StepItem& item, const RowTable& rows,
                                        const float* q, float* out)>;
  void set_attend_hook(AttendHook hook) { on_attend_ = std::move(hook); }

  // Called between the parts of a layer that may wait for a slow link.
  void set_progress(std::function<void()> progress) { progress_ = std::move(progress); }

  std::vector<LayerCounts>& counts() { return counts_; }  // [layers], sums until cleared
  bool can_select() const { return options_.channels != nullptr; }
  uint64_t direct_bytes() const;  // read so far by the device thread
  const LabelLayout& label_layout() const { return label_layout_; }

 private:
  // One item that selects: the tokens that it chooses among, and how many of them.
  struct Selecting {
    uint32_t index = 0;
    uint32_t tokens = 0;
    uint32_t first = 0;  // those before it are outside of the layer's window
    uint32_t count = 0;
    // Where the sequence has a recall target and a choice: what the budget allows, and how many
    // rows beside the always-set the label scores ask for.
    uint32_t most = 0, estimated = 0;
  };
  // Where a list is made and what becomes of it: the step's own, or its predictions'.
  struct Lists {
    const float* q = nullptr;
    float* scores = nullptr;
    uint32_t* selection = nullptr;
    uint32_t* slots = nullptr;
    RowMove* misses = nullptr;
  };
  using Use = std::function<void(std::span<const Selecting> round, size_t stride)>;

  void AttendByHook(uint32_t layer);
  void AttendDense(uint32_t layer);
  void AttendSelected(uint32_t layer, std::span<const Selecting> round, size_t stride);
  void AttendPredicted(uint32_t layer, uint32_t index);
  void AppendToSlots(std::span<const AttendArgs::Item> items, size_t stride);
  // Scores and selects in rounds that fit the scratch, and hands each round on, its lists in
  // Lists::selection, [round][kv_heads, stride].
  void ForEachRound(uint32_t layer, bool predicted, std::span<Selecting> all, const Use& use);
  void ScoreAndSelect(uint32_t layer, bool predicted, std::span<Selecting> round, size_t stride);
  void ShowLists(uint32_t layer, bool predicted, std::span<const Selecting> round, size_t stride);
  void Attend(uint32_t layer, std::span<const AttendArgs::Item> items, size_t stride);

  void PredictRows(uint32_t layer, std::span<const uint32_t> positions);
  // The items that rotate alike and follow each other, as runs of them.
  struct RopeRun {
    uint32_t first_item = 0, items = 0;
    uint32_t first_token = 0, tokens = 0;
    std::span<const float> inverse_frequency;
  };
  std::vector<RopeRun> RopeRuns() const;
  void AppendRun(uint32_t layer, const RopeRun& run, std::span<const uint32_t> positions);
  void GuessInput(uint32_t layer, uint32_t tokens, bool as_published);
  uint32_t PredictedCount(uint32_t layer, const StepItem& item) const;
  const Lists& lists(bool predicted) const { return predicted ? ahead_lists_ : step_lists_; }
  RowFetcher::Request RequestFor(const Selecting& selecting, bool predicted, size_t n,
                                 size_t stride) const;
  void CountHere(uint32_t layer, const StepItem& item, uint64_t rows_per_head);
  // attention_recall.cc
  bool adaptive(uint32_t index) const;
  bool dense(uint32_t layer, const StepItem& item) const;
  void ChooseCounts(uint32_t layer, std::span<Selecting> round, size_t stride);
  uint32_t EstimatedRows(uint32_t layer, const Selecting& one) const;
  double LogitsPerScore(uint32_t layer, uint32_t token, uint32_t kv_head) const;
  const float* Query(uint32_t token, uint32_t kv_head) const;
  void CountScores(const Selecting& one, const float* scores, size_t stride);
  void SampleRecall(uint32_t layer, std::span<const Selecting> round, size_t stride);
  void Sampled(uint32_t layer, const StepItem& item, double held);
  double Measure(uint32_t layer, const Selecting& one, size_t offset, size_t stride);
  std::array<double, kScoreBins> BinMass(const ScoreHistogram& histogram, const float* scores,
                                         uint32_t begin, uint32_t end) const;
  void KeepPrediction(uint32_t layer, std::span<const Selecting> round, size_t stride);
  void JudgePrediction(uint32_t layer, std::span<const Selecting> round, size_t stride);

  const LayerPolicy& policy(uint32_t layer) const;
  // Whether the item attends nothing but its prediction.
  bool uncorrected(uint32_t layer, uint32_t index) const;
  RowTable PrefillRows(uint32_t block) const;
  RowTable HostRows(uint32_t layer, const StepItem& item) const;
  RowTable RowsIn(std::byte* pool, uint32_t layer, const StepItem& item) const;
  LabelTable Labels(uint32_t layer, const StepItem& item) const;
  const uint16_t* Channels(uint32_t layer) const;
  size_t StrideFor(uint32_t tokens) const;
  StepSpan Span(size_t index) const;

  const Options options_;
  const ModelConfig& config_;
  Backend& backend_;
  const Scratch scratch_;
  const Lists step_lists_, ahead_lists_;
  LabelLayout label_layout_;
  // [head_dim / 2], of sequences up to a model's original context and of longer ones.
  const std::vector<float> inverse_frequency_, long_inverse_frequency_;

  std::vector<LayerPolicy> policies_;
  std::vector<LayerCounts> counts_;  // [layers]
  uint64_t in_place_bytes_ = 0;
  bool measure_ = false;

  // Of the step in progress.
  std::span<const StepItem> items_;
  std::span<const uint32_t> first_;
  // Measured steps: whose predictions are in scratch.kept, by item; layers take the two in turn.
  struct Kept {
    uint32_t layer = kNoToken;
    size_t used = 0;  // entries
    struct List {
      Selecting of;
      size_t offset = 0, stride = 0;
    };
    std::vector<List> lists;
  };
  Kept kept_[2];
  struct Judged {
    uint32_t layer = 0;
    uint64_t predicted = 0;  // rows, over KV heads
    size_t common = 0;       // place in scratch.common
  };
  std::vector<Judged> judged_;
  std::vector<uint32_t> guessed_;  // marks: the layer's input has been used, [layers so far]
  std::vector<uint32_t> common_seen_;
  std::vector<ScoreHistogram> histograms_;  // [kv_heads], of one item

  std::function<void()> progress_;
  SelectionHook on_selection_;
  AttendHook on_attend_;
};

}  // namespace sparsekv
