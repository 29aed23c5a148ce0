#include <algorithm>

#include "cli/eval/policies/label_scores.h"
#include "cli/eval/policies/policies.h"
#include "cli/eval/policies/scores.h"

namespace sparsekv {

namespace {

class DoubleSparsity : public HeadPolicy {
 public:
  DoubleSparsity(const HeadShape& shape, const DoubleSparsityOptions& options)
      : options_(options), labels_(shape, options) {}

  void Begin(const PromptStatistics& prompt) override { labels_.Begin(*prompt.keys); }

  bool Rewind(uint32_t tokens) override {
    labels_.Truncate(tokens);
    return true;
  }

  void Select(const HeadStep& step, HeadSelection* selection) override {
    labels_.Add(*step.keys);
    selection->index_bytes = IndexBytes(step.tokens());
    const AlwaysRows& always = options_.always;
    if (!options_.offload || options_.corrected || !step.predicted || step.tokens() == 1) {
      selection->rows =
          TopRows(labels_.Score(step.q, step.tokens()), step.rows, always.sinks, always.recent);
      return;
    }
    // The current row is no part of a prediction, which is made before it exists.
    const uint32_t before = step.tokens() - 1;
    const uint32_t least = std::min(before, always.sinks + always.recent);
    selection->rows =
        TopRows(labels_.Score(step.predicted, before), std::clamp(step.rows - 1, least, before),
                always.sinks, always.recent);
    selection->rows.push_back(before);
  }

  size_t IndexBytes(uint32_t tokens) const override { return labels_.Bytes(tokens); }

 private:
  const DoubleSparsityOptions options_;
  LabelScores labels_;
};

}  // namespace

std::unique_ptr<HeadPolicy> MakeDoubleSparsity(const HeadShape& shape,
                                               const DoubleSparsityOptions& options) {
  return std::make_unique<DoubleSparsity>(shape, options);
}

}  // namespace sparsekv
