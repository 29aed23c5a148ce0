#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "sparsekv/v1/worker.pb.h"

namespace sparsekv {

// --predict and --correction.
struct PrefetchOptions {
  bool predict = true;
  bool correct = true;  // false: predicted layers attend what was predicted and nothing else
};

// Prefetch control of one worker: from its reports to its plans' LayerPlans. A function of the
// reports alone: no clock, no I/O. Strand only.
//
// Every layer but the first begins predicted, at 100 %. A layer is judged whenever reports with
// enough rows that were not hot add up to kJudgeSteps steps; then its sums begin anew. Of the sums:
//   coverage    useful / (useful + missed): of the rows that were not hot, those that prefetch had
//               brought (rows of dense sequences, which are missed too, left out). Uncorrected:
//               predicted_selected / predicted, as nothing is missed there.
//   cut share   cut / (prefetched + cut)
//   link share  link_s / busy_s, of the worker
// The first of these that applies:
//   1. too slow a link   cut share > 1/4, or > 1/20 with link share > 9/10: 25 % less, not below 50
//   2. of no use         coverage < 1/5: off
//   3. a raise judged    it brought less than 2 points of coverage: taken back
//   4. room for more     coverage < 9/10, cut share < 1/100, link share < 7/10: 25 % more, up to
//                        200 and to the layer's limit
//   5. off               on again, at 100 %, once the similarity of its input has risen by half of
//                        what it lacked to 1, and by 0.05 at least, over the highest at which it
//                        was switched off, or on in vain, before
// 1 and 3 set the layer's limit to the lower percentage, for good, unless the rows that are
// selected per step become twice or half as many: that does not depend on anything set here, so it
// can only mean other work. So limits only fall while the work is the same, and the similarity that
// is asked for only rises: constant input cannot make a layer's settings oscillate.
//
// Uncorrected, what is predicted is what is attended, so the percentage stays at 100: results must
// not depend on how fast the link is. Only 2 and 5 apply.
class PrefetchControl {
 public:
  static constexpr uint32_t kStep = 25;  // percent
  static constexpr uint32_t kMinPercent = 50;
  static constexpr uint32_t kMaxPercent = 200;
  static constexpr uint32_t kJudgeSteps = 32;
  static constexpr uint32_t kEnoughRows = 64;  // of one report

  struct Setting {
    bool predict = false;
    uint32_t percent = 100;  // of a sequence's budget
    bool operator==(const Setting&) const = default;
  };
  struct Change {
    uint32_t layer = 0;
    Setting now;
    std::string why;  // a few words
  };

  PrefetchControl() = default;  // of no layer
  PrefetchControl(PrefetchOptions options, uint32_t layers);

  // `stats`: steps that were made under the settings of now.
  std::vector<Change> OnEpoch(const v1::EpochStats& stats);

  // One for each layer; none with prediction off.
  const std::vector<Setting>& settings() const { return settings_; }
  // Of steps that were made under the settings of now; absent where there was nothing to cover.
  std::optional<double> Coverage(uint32_t layer, const v1::LayerStats& stats) const;
  void FillPlan(v1::Plan* plan) const;

 private:
  struct Sums {
    double steps = 0, link_s = 0, busy_s = 0;
    double selected = 0, hits = 0, prefetched = 0, useful = 0, missed = 0, cut = 0;
    double predicted = 0, predicted_selected = 0;
    double similarity = 0, similarity_count = 0;
  };
  struct Layer {
    Sums sums;                             // since it was judged last
    uint32_t limit = kMaxPercent;          // percent
    double limit_load = 0;                 // rows selected per step when the limit was set
    std::optional<double> before_raise;    // coverage, while the last raise is on trial
    std::optional<double> off_similarity;  // the highest that did not do; absent: not known
  };

  bool EnoughToJudge(const v1::LayerStats& stats, bool predicted) const;
  static void Add(const v1::LayerStats& stats, Sums* sums);
  double Coverage(const Sums& sums, uint32_t percent) const;
  // The reason of a change, or empty.
  std::string Judge(Layer& layer, Setting& setting) const;
  std::string JudgePredicted(Layer& layer, Setting& setting) const;
  std::string JudgeOff(Layer& layer, Setting& setting) const;

  PrefetchOptions options_;
  std::vector<Setting> settings_;
  std::vector<Layer> layers_;
};

}  // namespace sparsekv
