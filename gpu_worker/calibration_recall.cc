#include "gpu_worker/calibration_recall.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <numeric>

#include "base/check.h"
#include "gpu_worker/budget.h"

namespace sparsekv {

namespace {

// Greater for a higher score, and for the lower token of two equal ones; NaN below every number.
uint64_t Rank(float score, uint32_t token) {
  const uint32_t bits = std::bit_cast<uint32_t>(score + 0.0f);  // of the two zeros, one
  const uint32_t ascending = std::isnan(score) ? 0 : bits >> 31 ? ~bits : bits | 0x80000000u;
  return uint64_t{ascending} << 32 | ~token;
}

// For each budget, the attention that falls on the always-set and the highest scores of the rest.
void AddRecalls(const HeadSample::Range& seen, const std::vector<float>& scores,
                const std::vector<float>& attention, const std::vector<uint32_t>& denominators,
                double always, std::vector<float>* recalls) {
  thread_local std::vector<uint64_t> ranks;
  ranks.clear();
  for (uint32_t t = seen.low; t < seen.high; ++t) ranks.push_back(Rank(scores[t], t));
  size_t kept = ranks.size();
  for (uint32_t denominator : denominators) {
    const uint32_t rows = RowBudget{0, denominator}.At(seen.present, seen.first);
    const uint32_t free = rows - AlwaysSetSize(seen.present, seen.first);
    if (free < kept) {
      std::nth_element(ranks.begin(), ranks.begin() + free,
                       ranks.begin() + static_cast<ptrdiff_t>(kept), std::greater<>());
      kept = free;
    }
    double sum = always;
    for (size_t i = 0; i < kept; ++i) sum += attention[~static_cast<uint32_t>(ranks[i])];
    recalls->push_back(static_cast<float>(sum));
  }
}

// scores = softmax(scale * scores) over the tokens [first, present).
void Softmax(const HeadSample::Range& seen, float scale, std::vector<float>& scores) {
  const auto begin = scores.begin() + seen.first, end = scores.begin() + seen.present;
  const float highest = *std::max_element(begin, end);
  double total = 0;
  for (auto s = begin; s != end; ++s) total += * s = std::exp((*s - highest) * scale);
  for (auto s = begin; s != end; ++s) *s = static_cast<float>(*s / total);
}

}  // namespace

RecallMeter::RecallMeter(const ModelConfig& config, Options options)
    : options_(std::move(options)),
      kv_heads_(config.kv_heads),
      head_dim_(config.head_dim),
      queries_(size_t{config.layers} * config.kv_heads),
      values_(queries_.size()) {
  CHECK(std::ranges::is_sorted(options_.denominators));
  for (const auto& order : options_.orders) CHECK_EQ(order.size(), queries_.size() * head_dim_);
}

const uint16_t* RecallMeter::Channels(const HeadSample& sample, const LabelChoice& choice) const {
  const size_t head = size_t{sample.layer} * kv_heads_ + sample.kv_head;
  return options_.orders[choice.order].data() + head * head_dim_;
}

std::vector<float> RecallMeter::MakeLabels(const HeadSample& sample, const LabelChoice& choice,
                                           const uint16_t* channels) const {
  std::vector<float> labels(size_t{choice.channels} * sample.tokens), label(choice.channels);
  for (uint32_t t = 0; t < sample.tokens; ++t) {
    for (uint32_t i = 0; i < choice.channels; ++i) label[i] = sample.Channel(channels[i])[t];
    RoundLabel(choice.format, label);
    for (uint32_t i = 0; i < choice.channels; ++i) labels[size_t{i} * sample.tokens + t] = label[i];
  }
  return labels;
}

void RecallMeter::Score(const HeadSample& sample, size_t query, const LabelChoice& choice,
                        const std::vector<float>& labels, std::vector<float>* scores) const {
  const HeadSample::Range seen = sample.Seen(query);
  const uint16_t* channels = Channels(sample, choice);
  const uint32_t count = choice.channels;
  const float scale = 1 / std::sqrt(static_cast<float>(head_dim_));  // kernels/labels.h
  std::vector<float> one(sample.tokens), q(count);
  for (uint32_t h = 0; h < sample.group; ++h) {
    float squares = 0;
    for (uint32_t i = 0; i < count; ++i) {
      q[i] = sample.Query(query, h)[channels[i]];
      squares += q[i] * q[i];
    }
    if (options_.pooling == Pooling::kMaxNormalised) {
      const float norm = std::sqrt(squares);
      for (float& x : q) x = norm == 0 ? 0 : x / norm;
    }
    RoundQuery(choice.format, q);
    std::fill(one.begin(), one.end(), 0.0f);
    for (uint32_t i = 0; i < count; ++i) {
      const float* label = labels.data() + size_t{i} * sample.tokens;
      for (uint32_t t = seen.first; t < seen.present; ++t) one[t] += q[i] * label[t];
    }
    if (options_.pooling == Pooling::kSoftmaxMass) Softmax(seen, scale, one);
    const bool highest = options_.pooling == Pooling::kMaxNormalised;
    for (uint32_t t = seen.first; t < seen.present; ++t) {
      const float before = (*scores)[t];
      (*scores)[t] = h == 0 ? one[t] : highest ? std::max(before, one[t]) : before + one[t];
    }
  }
}

void RecallMeter::Add(const HeadSample& sample) {
  std::vector<std::vector<float>> labels;
  for (const LabelChoice& choice : options_.choices) {
    labels.push_back(MakeLabels(sample, choice, Channels(sample, choice)));
  }
  const size_t head = size_t{sample.layer} * kv_heads_ + sample.kv_head;
  queries_[head] += sample.positions.size();
  std::vector<float> scores(sample.tokens), one(sample.tokens), attention(sample.tokens);
  for (size_t i = 0; i < sample.positions.size(); ++i) {
    const HeadSample::Range seen = sample.Seen(i);
    std::fill(attention.begin(), attention.end(), 0.0f);
    for (uint32_t h = 0; h < sample.group; ++h) {
      sample.Attention(i, h, one.data());
      for (uint32_t t = seen.first; t < seen.present; ++t) {
        attention[t] += one[t] / static_cast<float>(sample.group);
      }
    }
    double always = 0;
    for (uint32_t t = seen.first; t < seen.present; ++t) {
      if (t < seen.low || t >= seen.high) always += attention[t];
    }
    for (size_t choice = 0; choice < labels.size(); ++choice) {
      Score(sample, i, options_.choices[choice], labels[choice], &scores);
      AddRecalls(seen, scores, attention, options_.denominators, always, &values_[head]);
    }
    AddRecalls(seen, attention, attention, options_.denominators, always, &values_[head]);
    values_[head].insert(values_[head].end(), options_.denominators.size(),
                         static_cast<float>(always));
  }
}

std::vector<double> RecallMeter::PerQuery(size_t choice, size_t budget) const {
  const size_t budgets = options_.denominators.size();
  const size_t stride = (options_.choices.size() + 2) * budgets;
  std::vector<double> means(queries(), 0.0);
  for (const std::vector<float>& head : values_) {
    for (size_t i = 0; i < means.size(); ++i) {
      means[i] +=
          head[i * stride + choice * budgets + budget] / static_cast<double>(values_.size());
    }
  }
  return means;
}

std::vector<double> RecallMeter::PerHead(size_t choice, size_t budget) const {
  const size_t budgets = options_.denominators.size();
  const size_t stride = (options_.choices.size() + 2) * budgets;
  std::vector<double> means;
  for (const std::vector<float>& head : values_) {
    double sum = 0;
    for (size_t i = 0; i < queries(); ++i) sum += head[i * stride + choice * budgets + budget];
    means.push_back(sum / static_cast<double>(std::max<size_t>(queries(), 1)));
  }
  return means;
}

double RecallMeter::Mean(size_t choice, size_t budget) const {
  const std::vector<double> heads = PerHead(choice, budget);
  return std::accumulate(heads.begin(), heads.end(), 0.0) / static_cast<double>(heads.size());
}

}  // namespace sparsekv
