#pragma once

#include <cstdint>
#include <vector>

#include "gpu_worker/calibration_sample.h"
#include "gpu_worker/checkpoint/model_config.h"
#include "kernels/label_codes.h"
#include "kernels/labels.h"

namespace sparsekv {

// Which labels are judged.
struct LabelChoice {
  size_t order = 0;  // which of RecallMeter::Options::orders
  uint32_t channels = 0;
  LabelFormat format = LabelFormat::kBf16;
};

// Recall of attention mass: which share of dense attention, mean over a group's query heads, falls
// on the rows that labels select (kernels/labels.h, select.h; always-set included) at some budgets.
class RecallMeter {
 public:
  struct Options {
    std::vector<std::vector<uint16_t>> orders;  // each [layers, kv_heads, head_dim], best first
    std::vector<LabelChoice> choices;
    std::vector<uint32_t> denominators;  // budgets of 1/N, ascending
    Pooling pooling = Pooling::kMaxNormalised;
  };
  RecallMeter(const ModelConfig& config, Options options);

  // Threads may add different heads. Every head gets samples of the same positions.
  void Add(const HeadSample& sample);

  size_t queries() const { return queries_[0]; }
  const Options& options() const { return options_; }

  // One figure per query, mean over layers and KV heads, so that two choices can be compared query
  // by query.
  std::vector<double> PerQuery(size_t choice, size_t budget) const;
  // [layers, kv_heads], mean over the queries.
  std::vector<double> PerHead(size_t choice, size_t budget) const;
  double Mean(size_t choice, size_t budget) const;
  // What the best selection of as many rows, and the always-set alone, would have.
  double Oracle(size_t budget) const { return Mean(options_.choices.size(), budget); }
  double AlwaysSet(size_t budget) const { return Mean(options_.choices.size() + 1, budget); }

 private:
  // `labels` of one choice, [channels, tokens].
  std::vector<float> MakeLabels(const HeadSample& sample, const LabelChoice& choice,
                                const uint16_t* channels) const;
  void Score(const HeadSample& sample, size_t query, const LabelChoice& choice,
             const std::vector<float>& labels, std::vector<float>* scores) const;
  const uint16_t* Channels(const HeadSample& sample, const LabelChoice& choice) const;

  const Options options_;
  const uint32_t kv_heads_, head_dim_;
  std::vector<size_t> queries_;             // [heads]
  std::vector<std::vector<float>> values_;  // [heads][queries, choices + 2, denominators]
};

}  // namespace sparsekv
