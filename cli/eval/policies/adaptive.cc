#include <algorithm>
#include <array>
#include <cmath>

#include "base/check.h"
#include "cli/eval/policies/label_scores.h"
#include "cli/eval/policies/policies.h"
#include "cli/eval/policies/scores.h"
#include "gpu_worker/mass_curve.h"
#include "gpu_worker/sequence_recall.h"
#include "kernels/select.h"

namespace sparsekv {

namespace {

// What the heads of a layer decide together: as gpu_worker/attention_recall.cc does, with the same
// arithmetic.
class AdaptiveSequence {
 public:
  AdaptiveSequence(uint32_t layers, uint32_t kv_heads, double target)
      : layer_count_(layers), kv_heads_(kv_heads), target_(target) {}

  void Begin(uint32_t prompt_tokens) {
    recall_ = SequenceRecall(layer_count_, prompt_tokens, target_);
    estimated_.clear();
    measured_.clear();
  }
  bool Samples(uint32_t layer, uint32_t tokens) const {
    return !recall_.whole(layer) && recall_.Samples(layer, tokens - 1);
  }

  // One head of the layer after the other; `measured` in steps that sample the layer.
  void Look(uint32_t layer, uint32_t tokens, uint32_t most, const MassCurve& estimated,
            const MassCurve* measured) {
    estimated_.push_back(estimated);
    if (measured) measured_.push_back(*measured);
    if (estimated_.size() < kv_heads_) return;
    Decide(layer, tokens, most);
    estimated_.clear();
    measured_.clear();
  }
  uint32_t rows(uint32_t layer) const { return recall_.rows(layer); }

 private:
  void Decide(uint32_t layer, uint32_t tokens, uint32_t most) {
    const uint32_t always = AlwaysSetSize(tokens);
    if (recall_.whole(layer) || always == tokens) return recall_.set_rows(layer, tokens);
    const uint32_t estimated = RowsForShare(estimated_, target_);
    recall_.Choose(layer, always, estimated, most);
    if (measured_.empty()) return;
    recall_.Correct(layer, always, estimated, RowsForShare(measured_, target_), most);
  }

  const uint32_t layer_count_, kv_heads_;
  const double target_;
  SequenceRecall recall_;
  std::vector<MassCurve> estimated_, measured_;
};

class Adaptive : public HeadPolicy {
 public:
  Adaptive(std::shared_ptr<AdaptiveSequence> sequence, const HeadShape& shape,
           const DoubleSparsityOptions& options)
      : sequence_(std::move(sequence)), shape_(shape), labels_(shape, options) {}

  void Begin(const PromptStatistics& prompt) override {
    labels_.Begin(*prompt.keys);
    if (shape_.layer == 0 && shape_.kv_head == 0) sequence_->Begin(prompt.keys->tokens());
  }

  // The sequence is the first head's to take back: all heads go back together.
  bool Rewind(uint32_t tokens) override {
    labels_.Truncate(tokens);
    if (shape_.layer == 0 && shape_.kv_head == 0) sequence_->Begin(tokens);
    return true;
  }

  void Look(const HeadStep& step) override {
    const uint32_t tokens = step.tokens();
    labels_.Add(*step.keys);
    scores_ = labels_.Score(step.q, tokens);
    begin_ = std::min(kSinkTokens, tokens);
    end_ = std::max(begin_, tokens - std::min(tokens, kRecentTokens + 1));
    const ScoreHistogram histogram = Histogram();
    const MassCurve estimated = MassCurve::Estimated(histogram, LogitsPerScore(step.q));
    sampled_ = sequence_->Samples(shape_.layer, tokens);
    if (!sampled_) return sequence_->Look(shape_.layer, tokens, step.rows, estimated, nullptr);
    const MassCurve measured = Measured(step, histogram);
    sequence_->Look(shape_.layer, tokens, step.rows, estimated, &measured);
  }

  void Select(const HeadStep& step, HeadSelection* selection) override {
    const uint32_t rows = sequence_->rows(shape_.layer);
    selection->rows = TopRows(scores_, rows, kSinkTokens, kRecentTokens + 1);
    selection->index_bytes = labels_.Bytes(step.tokens());
    // A sample reads every key.
    if (sampled_) selection->index_bytes += step.tokens() * shape_.key_bytes();
  }

  size_t IndexBytes(uint32_t tokens) const override { return labels_.Bytes(tokens); }

 private:
  bool logarithms() const { return labels_.pooling() == Pooling::kSoftmaxMass; }
  float Value(uint32_t token) const {
    return logarithms() ? std::log(scores_[token]) : scores_[token];
  }

  ScoreHistogram Histogram() const {
    ScoreHistogram histogram;
    histogram.low = HUGE_VALF;
    histogram.high = -HUGE_VALF;
    for (uint32_t t = begin_; t < end_; ++t) {
      if (!std::isfinite(Value(t))) continue;
      histogram.low = std::min(histogram.low, Value(t));
      histogram.high = std::max(histogram.high, Value(t));
    }
    if (histogram.low > histogram.high) histogram.low = histogram.high = 0;
    for (uint32_t t = begin_; t < end_; ++t) ++histogram.counts[Bin(histogram, t)];
    return histogram;
  }
  uint32_t Bin(const ScoreHistogram& histogram, uint32_t token) const {
    return ScoreHistogram::Bin(Value(token), histogram.low, histogram.bins_per_score());
  }

  double LogitsPerScore(const float* q) const {
    switch (labels_.pooling()) {
      case Pooling::kSoftmaxMass:
        return 1;
      case Pooling::kSum:
        return shape_.scale / static_cast<double>(shape_.group);
      case Pooling::kMaxNormalised:
        break;
    }
    return labels_.QueryNorm(q) * shape_.scale;
  }

  MassCurve Measured(const HeadStep& step, const ScoreHistogram& histogram) {
    GroupAttention(step.q, *step.keys, step.tokens(), shape_, &attention_);
    std::array<double, kScoreBins> mass = {};
    double always = 0;
    for (uint32_t t = 0; t < step.tokens(); ++t) {
      (t >= begin_ && t < end_ ? mass[Bin(histogram, t)] : always) += attention_[t];
    }
    return MassCurve::Measured(histogram, mass, always);
  }

  const std::shared_ptr<AdaptiveSequence> sequence_;
  const HeadShape shape_;
  LabelScores labels_;
  std::span<const float> scores_;  // of the step
  uint32_t begin_ = 0, end_ = 0;   // tokens that compete
  bool sampled_ = false;
  std::vector<float> attention_;
};

}  // namespace

std::vector<std::unique_ptr<HeadPolicy>> MakeAdaptive(
    std::span<const HeadShape> shapes, std::span<const DoubleSparsityOptions> options,
    double target) {
  CHECK(!shapes.empty() && shapes.size() == options.size());
  const uint32_t kv_heads = shapes.back().kv_head + 1;
  const auto sequence =
      std::make_shared<AdaptiveSequence>(shapes.back().layer + 1, kv_heads, target);
  std::vector<std::unique_ptr<HeadPolicy>> heads;
  for (size_t i = 0; i < shapes.size(); ++i) {
    heads.push_back(std::make_unique<Adaptive>(sequence, shapes[i], options[i]));
  }
  return heads;
}

}  // namespace sparsekv
