#include "cli/eval/policies/label_scores.h"

#include <algorithm>
#include <cmath>

#include "cli/eval/policies/scores.h"
#include "kernels/half.h"

namespace sparsekv {

namespace {

constexpr size_t kScaleAndZeroBytes = 4;  // two numbers of 16 bits

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
  const auto [low, high] = std::ranges::minmax(label);
  const auto levels = static_cast<float>((1u << options.bits) - 1);
  const float step = Rounded((high - low) / levels, DType::kF16);
  const float zero = Rounded(low, DType::kF16);
  for (float& x : label) {
    if (step > 0) x = std::clamp(std::round((x - zero) / step), 0.0f, levels) * step + zero;
  }
}

}  // namespace

LabelScores::LabelScores(const HeadShape& shape, const DoubleSparsityOptions& options)
    : shape_(shape),
      options_(options),
      channels_(options.channels.begin(), options.channels.end()) {
  for (uint16_t i = 0; i < channels_.size(); ++i) label_channels_.push_back(i);
}

void LabelScores::Begin(const KeyHistory& keys) {
  labels_.reset();
  Add(keys);
}

size_t LabelScores::Bytes(uint32_t tokens) const {
  const size_t extra = options_.bits == 16 ? 0 : kScaleAndZeroBytes;
  return tokens * (channels_.size() * options_.bits / 8 + extra);
}

void LabelScores::Add(const KeyHistory& keys) {
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

std::span<const float> LabelScores::Score(const float* q, uint32_t tokens) {
  scores_.assign(tokens, 0.0f);
  std::vector<float> one(tokens), query(channels_.size());
  for (uint32_t h = 0; h < shape_.group; ++h) {
    float squares = 0;
    for (size_t i = 0; i < channels_.size(); ++i) {
      query[i] = q[size_t{h} * shape_.head_dim + channels_[i]];
      squares += query[i] * query[i];
    }
    if (options_.pooling == Pooling::kMaxNormalised) {
      const float norm = std::sqrt(squares);
      for (float& x : query) x = norm > 0 ? x / norm : 0.0f;
    }
    ScoreKeys(query.data(), *labels_, tokens, label_channels_, one.data());
    if (options_.pooling == Pooling::kSoftmaxMass) Softmax(one, shape_.scale);
    for (uint32_t t = 0; t < tokens; ++t) {
      const bool max = options_.pooling == Pooling::kMaxNormalised;
      scores_[t] = h == 0 ? one[t] : max ? std::max(scores_[t], one[t]) : scores_[t] + one[t];
    }
  }
  return scores_;
}

double LabelScores::QueryNorm(const float* q) const {
  double norms = 0;
  for (uint32_t h = 0; h < shape_.group; ++h) {
    double squares = 0;
    for (uint16_t c : channels_) {
      const double x = q[size_t{h} * shape_.head_dim + c];
      squares += x * x;
    }
    norms += std::sqrt(squares);
  }
  return norms / shape_.group;
}

}  // namespace sparsekv
