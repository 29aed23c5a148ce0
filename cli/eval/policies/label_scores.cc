#include "cli/eval/policies/label_scores.h"

#include <algorithm>
#include <cmath>

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
  if (options.format != LabelFormat::kBf16) return;  // coded where it is kept
  if (options.bits == 16) {
    for (float& x : label) x = FromBf16(ToBf16(x));
    return;
  }
  RoundToCodes(label, options.bits);
}

}  // namespace

LabelScores::LabelScores(const HeadShape& shape, const DoubleSparsityOptions& options)
    : shape_(shape),
      options_(options),
      channels_(options.channels.begin(), options.channels.end()) {}

void LabelScores::Begin(const KeyHistory& keys) {
  labels_.reset();
  Add(keys);
}

void LabelScores::Truncate(uint32_t tokens) {
  if (labels_) labels_->Truncate(tokens);
}

size_t LabelScores::Bytes(uint32_t tokens) const {
  if (options_.format != LabelFormat::kBf16) {
    return tokens * LabelBytes(options_.format, static_cast<uint32_t>(channels_.size()));
  }
  const size_t extra = options_.bits == 16 ? 0 : kScaleAndZeroBytes;
  return tokens * (channels_.size() * options_.bits / 8 + extra);
}

void LabelScores::Add(const KeyHistory& keys) {
  if (!labels_ || labels_->tokens() > keys.tokens()) {
    labels_.emplace(options_.format, static_cast<uint32_t>(channels_.size()), keys.capacity());
  }
  std::vector<float> label(channels_.size());
  for (uint32_t t = labels_->tokens(); t < keys.tokens(); ++t) {
    for (size_t i = 0; i < channels_.size(); ++i) label[i] = keys.At(t, channels_[i]);
    StoreLabel(label, options_);
    labels_->Append(label);
  }
}

std::vector<float> LabelScores::Query(const float* q, uint32_t head) const {
  std::vector<float> query;
  for (uint16_t c : channels_) query.push_back(q[size_t{head} * shape_.head_dim + c]);
  if (options_.query_bits < 16) RoundToCodes(query, options_.query_bits);
  return query;
}

std::span<const float> LabelScores::Score(const float* q, uint32_t tokens) {
  scores_.assign(tokens, 0.0f);
  std::vector<float> one(tokens);
  for (uint32_t h = 0; h < shape_.group; ++h) {
    std::vector<float> query = Query(q, h);
    float squares = 0;
    for (float x : query) squares += x * x;
    if (options_.pooling == Pooling::kMaxNormalised) {
      const float norm = std::sqrt(squares);
      for (float& x : query) x = norm > 0 ? x / norm : 0.0f;
    }
    if (options_.pooling == Pooling::kSoftmaxMass) {
      for (float& x : query) x /= std::sqrt(static_cast<float>(shape_.head_dim));
    }
    for (float& x : query) x = LabelQuery(x);
    labels_->Score(query, tokens, one.data());
    if (options_.pooling == Pooling::kSoftmaxMass) Softmax(one, 1.0f);
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
    for (float x : Query(q, h)) squares += double{x} * x;
    norms += std::sqrt(squares);
  }
  return norms / shape_.group;
}

}  // namespace sparsekv
