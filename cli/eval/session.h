#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/eval/policies/policy_spec.h"
#include "cli/eval/prompt_observer.h"
#include "cli/eval/query_guess.h"
#include "cli/eval/selection_attender.h"
#include "gpu_worker/local_runner.h"

namespace sparsekv {

// What a budget counts.
enum class BudgetUnit : uint8_t {
  kRows,   // rows of a selection; what was read to choose them comes on top
  kBytes,  // as many bytes as those rows have, for rows and what was read to choose them
};

// A policy at a budget: what is compared. The dense policy has no budget.
struct Candidate {
  PolicySpec policy;
  RowBudget budget;
};

// What attending cost, over steps, layers and KV heads.
struct AttendCost {
  uint64_t steps = 0;        // tokens
  uint64_t rows = 0;         // attended
  uint64_t bytes = 0;        // of rows, and of what was read to choose them
  uint64_t dense_rows = 0;   // that dense attention would have attended
  uint64_t dense_bytes = 0;  // and their bytes
  uint64_t selections = 0;   // made
  // Share of dense attention that they held, summed; of those that were looked at.
  double held = 0;
  uint64_t looked_at = 0;

  void Add(const AttendCost& other);
};

// One model and one sequence of it. A prefix is computed once, densely; then any number of
// candidates go on from it, each from the same rows. CPU backend. One thread.
class Session {
 public:
  struct Options {
    uint32_t max_tokens = 0;
    unsigned threads = 0;
    BudgetUnit unit = BudgetUnit::kRows;
    uint64_t seed = 0;
    uint32_t attention_stride = 8;  // every so many of a prompt's queries count for h2o's sums
    bool measure_recall = false;    // AttendCost::held of every policy, not of adaptive ones only
    std::vector<TokenKind> kinds;   // [vocabulary]; empty: all kOther
    const std::map<std::string, ChannelConfig>* channel_sets = nullptr;  // for PolicySpec's
  };
  // `candidates`: what will be begun. `files` and the channel sets outlive the session.
  static absl::StatusOr<std::unique_ptr<Session>> Make(const ModelFiles& files,
                                                       const Options& options,
                                                       std::span<const Candidate> candidates);

  // Whether a policy can be had, before anything is allocated.
  static absl::Status Check(const ModelFiles& files, const Options& options,
                            const PolicySpec& policy);

  // What a session keeps of a token beside its row: its keys, as policies read them.
  static size_t KeyBytes(const ModelConfig& config) {
    return sizeof(float) * config.layers * config.kv_heads * config.head_dim;
  }

  // Computes a prefix, which may be empty.  REQUIRES: shorter than max_tokens.
  void Start(std::span<const uint32_t> prefix);
  // Goes back to the end of the prefix; the steps that follow attend as the candidate says.
  void Begin(const Candidate& candidate);

  // What a candidate would have selected, beside the dense attention, mean over the group.
  struct ProbeView {
    uint32_t layer = 0, kv_head = 0;
    std::span<const float> attention;  // [tokens]
    size_t candidate = 0;
    std::span<const uint32_t> rows;
  };
  using Probe = std::function<void(const ProbeView&)>;
  // The same, but the steps attend densely, and `probe` sees every head of every candidate.
  void BeginProbe(std::span<const Candidate> candidates, Probe probe);

  // One more token; the logits after it, valid until the next call.
  const float* Step(uint32_t id);
  // Some more. `seen` gets the logits after each; in chunks where nothing is selected.
  void Steps(std::span<const uint32_t> ids,
             const std::function<void(size_t index, const float* logits)>& seen);

  // Since Begin; of a probe's candidates each.
  const AttendCost& cost(size_t candidate = 0) const { return running_[candidate].cost; }
  uint32_t position() const { return runner_->position(); }
  const ModelConfig& config() const { return files_.config; }

 private:
  struct Running {  // a candidate that was begun
    Candidate candidate;
    std::vector<std::unique_ptr<HeadPolicy>> heads;  // [layers, kv_heads]; none: dense
    AttendCost cost;
  };

  Session(const ModelFiles& files, const Options& options);
  static std::vector<HeadShape> Shapes(const ModelConfig& config);
  const ChannelConfig* ChannelsOf(const PolicySpec& policy) const {
    return ChannelsOf(files_, options_, policy);
  }
  static const ChannelConfig* ChannelsOf(const ModelFiles& files, const Options& options,
                                         const PolicySpec& policy);
  Running MakeRunning(const Candidate& candidate);
  void Rewind();
  bool GoesOn(const Candidate& candidate);
  void ObserveChunk(uint32_t layer, const float* q, uint32_t tokens);
  void AppendRows(uint32_t layer, const RowTable& rows, uint32_t position, uint32_t tokens);
  void Select(Running& running, size_t head, const float* q, HeadSelection* selection);
  void AttendStep(uint32_t layer, uint32_t position, const RowTable& rows, const float* q,
                  float* out);
  HeadStep StepOf(const Running& running, size_t head, const float* q) const;
  // The heads of a layer, whose queries are q, see the step before any of them selects.
  void Look(uint32_t layer, const float* q);
  void MeasureRecall(Running& running, size_t head, const float* q, const HeadSelection& selection);
  void ShowProbe(size_t head, const float* q);
  uint32_t RowsFor(const RowBudget& budget, const HeadPolicy& policy, uint32_t tokens) const;
  void CountDense(Running& running, uint32_t first, uint32_t tokens) const;

  const ModelFiles& files_;
  const Options options_;
  std::vector<HeadShape> shapes_;  // [layers, kv_heads], as the next ones
  std::unique_ptr<LocalRunner> runner_;
  std::optional<PromptObserver> observer_;
  std::optional<SelectionAttender> attender_;
  std::optional<ChannelConfig> guess_channels_;
  std::optional<QueryGuess> guess_;  // none: no candidate wants it
  bool guessing_ = false;            // one that was begun does

  uint32_t prefix_ = 0;
  std::vector<TokenKind> kinds_;             // of the tokens so far
  std::vector<KeyHistory> keys_;             // of the tokens so far
  std::vector<std::vector<double>> values_;  // sums of V over the tokens so far, [head_dim]
  std::vector<std::vector<double>> prefix_values_;

  std::vector<Running> running_;  // one, or a probe's
  Probe probe_;
  const float* guessed_ = nullptr;  // queries of the layer to come
};

}  // namespace sparsekv
