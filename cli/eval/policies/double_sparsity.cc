#include <algorithm>
#include <cmath>

#include "cli/eval/policies/policies.h"
#include "cli/eval/policies/scores.h"
#include "kernels/half.h"
#include "kernels/label_query.h"

namespace sparsekv {

namespace {

constexpr size_t kScaleAndZeroBytes = 4;  // two numbers of 16 bits

// Codes between the least and the greatest value, as they read back.
void RoundToCodes(std::span<float> values, uint32_t bits) {
  const auto [low, high] = std::ranges::minmax(values);
  const auto levels = static_cast<float>((1u << bits) - 1);
  const float step = Rounded((high - low) / levels, DType::kF16);
  const float zero = Rounded(low, DType::kF16);
  for (float& x : values) {
    if (step > 0) x = std::clamp(std::round((x - zero) / step), 0.0f, levels) * step + zero;
  }
}

// One token's label, rounded as it would be stored.
void StoreLabel(std::vector<float>& label, const DoubleSparsityOptions& options) {
  if (options.cosine) {
    float squares = 0;
    for (float x : label) squares += x * x;
    if (squares > 0) {
      for (float& x : label) x /= std::sqrt(squares);
    }
  }
  if (options.bits == 16) {
    for (float& x : label) x = FromBf16(ToBf16(x));
    return;
  }
  RoundToCodes(label, options.bits);
}

class DoubleSparsity : public HeadPolicy {
 public:
  DoubleSparsity(const HeadShape& shape, const DoubleSparsityOptions& options)
      : shape_(shape),
        options_(options),
        channels_(options.channels.begin(), options.channels.end()) {
    for (uint16_t i = 0; i < channels_.size(); ++i) label_channels_.push_back(i);
  }

  void Begin(const PromptStatistics& prompt) override {
    labels_.reset();
    AddLabels(*prompt.keys);
  }

  bool Rewind(uint32_t tokens) override {
    if (labels_) labels_->Truncate(tokens);
    return true;
  }

  void Select(const HeadStep& step, HeadSelection* selection) override {
    AddLabels(*step.keys);
    selection->index_bytes = IndexBytes(step.tokens());
    const AlwaysRows& always = options_.always;
    if (!options_.offload || options_.corrected || !step.predicted || step.tokens() == 1) {
      Score(step.q, step.tokens());
      selection->rows = TopRows(scores_, step.rows, always.sinks, always.recent);
      return;
    }
    // The current row is no part of a prediction, which is made before it exists.
    const uint32_t before = step.tokens() - 1;
    const uint32_t least = std::min(before, always.sinks + always.recent);
    Score(step.predicted, before);
    selection->rows =
        TopRows(scores_, std::clamp(step.rows - 1, least, before), always.sinks, always.recent);
    selection->rows.push_back(before);
  }

  size_t IndexBytes(uint32_t tokens) const override {
    const size_t extra = options_.bits == 16 ? 0 : kScaleAndZeroBytes;
    return tokens * (channels_.size() * options_.bits / 8 + extra);
  }

 private:
  void AddLabels(const KeyHistory& keys) {
    if (!labels_ || labels_->tokens() > keys.tokens()) {
      labels_.emplace(static_cast<uint32_t>(channels_.size()), keys.capacity());
    }
    std::vector<float> label(channels_.size());
    for (uint32_t t = labels_->tokens(); t < keys.tokens(); ++t) {
      for (size_t i = 0; i < channels_.size(); ++i) label[i] = keys.At(t, channels_[i]);
      StoreLabel(label, options_);
      labels_->Append(label.data());
    }
  }

  // As ScoreLabelsArgs says (kernels/labels.h), in the same order.
  void Score(const float* q, uint32_t tokens) {
    scores_.assign(tokens, 0.0f);
    std::vector<float> one(tokens), query(channels_.size());
    for (uint32_t h = 0; h < shape_.group; ++h) {
      float squares = 0;
      for (size_t i = 0; i < channels_.size(); ++i) {
        query[i] = q[size_t{h} * shape_.head_dim + channels_[i]];
      }
      if (options_.query_bits < 16) RoundToCodes(query, options_.query_bits);
      for (float x : query) squares += x * x;
      if (options_.pooling == Pooling::kMaxNormalised) {
        const float norm = std::sqrt(squares);
        for (float& x : query) x = norm > 0 ? x / norm : 0.0f;
      }
      if (options_.pooling == Pooling::kSoftmaxMass) {
        for (float& x : query) x /= std::sqrt(static_cast<float>(shape_.head_dim));
      }
      for (float& x : query) x = LabelQuery(x);
      ScoreKeys(query.data(), *labels_, tokens, label_channels_, one.data());
      if (options_.pooling == Pooling::kSoftmaxMass) Softmax(one, 1.0f);
      for (uint32_t t = 0; t < tokens; ++t) {
        const bool max = options_.pooling == Pooling::kMaxNormalised;
        scores_[t] = h == 0 ? one[t] : max ? std::max(scores_[t], one[t]) : scores_[t] + one[t];
      }
    }
  }

  const HeadShape shape_;
  const DoubleSparsityOptions options_;
  const std::vector<uint16_t> channels_;
  std::vector<uint16_t> label_channels_;  // 0, 1, ...: all of a label
  std::optional<KeyHistory> labels_;
  std::vector<float> scores_;
};

}  // namespace

std::unique_ptr<HeadPolicy> MakeDoubleSparsity(const HeadShape& shape,
                                               const DoubleSparsityOptions& options) {
  return std::make_unique<DoubleSparsity>(shape, options);
}

}  // namespace sparsekv
