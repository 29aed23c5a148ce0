#pragma once

#include <cstdint>
#include <vector>

namespace sparsekv {

// How many rows are taken for each that label scores ask for: what samples needed, in the mean of
// their logarithms, and more the less they agree and the fewer they are. Where steps need much the
// same that is little more; where each needs something else it is what the worst of them took.
// Pure.
class RowGain {
 public:
  static constexpr double kLeast = 1.0 / 64, kMost = 1 << 16;

  void Add(double estimated, double needed);
  uint32_t samples() const { return samples_; }
  // kLeast .. kMost.  REQUIRES: samples() > 0.
  double Value() const;

 private:
  double mean_ = 0, variance_ = 0;  // of logarithms; of the last samples more than of old ones
  uint32_t samples_ = 0;
};

// What a sequence knows of how much of dense attention its selections hold (recall), and, where it
// has a target for that, how many rows each of its layers takes. A function of the sequence's own
// tokens: neither batch, placement nor time come in, so that P2 holds. Belongs to the device
// thread.
//
// Samples: one layer, all of its KV heads, every so many decode steps, in turn; with a target more
// often, and all layers in the first steps, in which they take the whole budget: nothing is known
// of what is needed. A layer that needs more rows than the budget has, in two samples one after the
// other, attends everything from then on.
class SequenceRecall {
 public:
  SequenceRecall() = default;
  // `target` 0: nothing is chosen, samples only tell.
  SequenceRecall(uint32_t layers, uint32_t prompt_tokens, double target)
      : prompt_tokens_(prompt_tokens), target_(target), layers_(layers) {}

  bool adaptive() const { return target_ > 0; }
  double target() const { return target_; }
  // Whether the decode step at this position looks at the layer.
  bool Samples(uint32_t layer, uint32_t position) const;
  // The layer has fallen back to attending everything.
  bool whole(uint32_t layer) const { return adaptive() && layers_[layer].whole; }

  // Rows of the layer's selection, of which `always` are taken whatever the scores, with
  // `estimated` others by label scores; at most `most`. Kept as rows().
  uint32_t Choose(uint32_t layer, uint32_t always, uint32_t estimated, uint32_t most);
  // Of the last step; 0 before the first.
  uint32_t rows(uint32_t layer) const { return layers_[layer].rows; }
  void set_rows(uint32_t layer, uint32_t rows) { layers_[layer].rows = rows; }

  // A sample: what the selection held. Returns it as it is counted, 0 .. 1.
  double Add(double recall);
  // What it would have taken to reach the target, beside the `always` ones. True when the layer
  // falls back now.
  bool Correct(uint32_t layer, uint32_t always, uint32_t estimated, uint32_t needed, uint32_t most);

  double sum() const { return sum_; }
  uint64_t samples() const { return samples_; }
  uint32_t whole_layers() const;
  uint32_t mean_rows() const;  // of the last step's layers, rounded up

 private:
  struct Layer {
    RowGain gain;
    uint32_t misses = 0;  // samples in a row
    bool whole = false;
    uint32_t rows = 0;
  };

  uint32_t prompt_tokens_ = 0;
  double target_ = 0;
  std::vector<Layer> layers_;
  double sum_ = 0;
  uint64_t samples_ = 0;
};

}  // namespace sparsekv
