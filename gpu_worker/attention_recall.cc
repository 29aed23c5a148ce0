// Attention: how much of dense attention a selection holds, and how many rows a target for that
// takes. The device's memory is the host's.
#include <algorithm>
#include <array>
#include <cmath>

#include "base/check.h"
#include "gpu_worker/attention.h"

namespace sparsekv {

namespace {

// The rows that a selection chooses among; the others are taken anyway.
struct Competing {
  uint32_t begin, end;

  Competing(uint32_t tokens, uint32_t first)
      : begin(std::max(first, kSinkTokens)), end(tokens - std::min(tokens, kRecentTokens + 1)) {
    begin = std::min(begin, end);
  }
};

}  // namespace

bool Attention::adaptive(uint32_t index) const {
  return items_[index].recall && items_[index].recall->adaptive();
}

// Of a sequence that selects: where a layer has fallen back.
bool Attention::dense(uint32_t layer, const StepItem& item) const {
  return item.budget.dense() || (item.recall && item.recall->whole(layer));
}

// How much a logit of this KV head differs between rows whose label scores differ by 1: attention's
// own scale, over the label channels.
double Attention::LogitsPerScore(uint32_t layer, uint32_t token, uint32_t kv_head) const {
  const uint32_t group = config_.group(), channels = options_.channels->channels;
  switch (options_.channels->pooling) {
    case Pooling::kSoftmaxMass:  // scores are masses, and binned by their logarithms
      return 1;
    case Pooling::kSum:
      return config_.attention_scale() / static_cast<double>(group);
    case Pooling::kMaxNormalised:
      break;
  }
  const uint16_t* of_head = Channels(layer) + size_t{kv_head} * channels;
  double norms = 0;
  for (uint32_t g = 0; g < group; ++g) {
    const float* q = Query(token, kv_head) + size_t{g} * config_.head_dim;
    double squares = 0;
    for (uint32_t c = 0; c < channels; ++c) squares += double{q[of_head[c]]} * q[of_head[c]];
    norms += std::sqrt(squares);
  }
  return norms * config_.attention_scale() / group;
}

const float* Attention::Query(uint32_t token, uint32_t kv_head) const {
  const size_t head = size_t{token} * config_.heads + size_t{kv_head} * config_.group();
  return scratch_.q + head * config_.head_dim;
}

void Attention::CountScores(const Selecting& one, const float* scores, size_t stride) {
  const Competing among(one.tokens, one.first);
  histograms_.resize(config_.kv_heads);
  backend_.CountScores({.scores = scores,
                        .kv_heads = config_.kv_heads,
                        .score_stride = stride,
                        .begin = among.begin,
                        .end = among.end,
                        .logarithms = options_.channels->pooling == Pooling::kSoftmaxMass,
                        .histograms = histograms_.data()});
}

// Of the competing rows, by the label scores alone.
uint32_t Attention::EstimatedRows(uint32_t layer, const Selecting& one) const {
  std::vector<MassCurve> heads;
  for (uint32_t head = 0; head < config_.kv_heads; ++head) {
    heads.push_back(
        MassCurve::Estimated(histograms_[head], LogitsPerScore(layer, first_[one.index], head)));
  }
  return RowsForShare(heads, items_[one.index].recall->target());
}

void Attention::ChooseCounts(uint32_t layer, std::span<Selecting> round, size_t stride) {
  for (size_t n = 0; n < round.size(); ++n) {
    Selecting& one = round[n];
    if (!adaptive(one.index)) continue;
    const uint32_t always = AlwaysSetSize(one.tokens, one.first), most = one.count;
    SequenceRecall& recall = *items_[one.index].recall;
    if (always == one.tokens - one.first) {
      recall.set_rows(layer, most);
      continue;
    }
    CountScores(one, step_lists_.scores + n * config_.kv_heads * stride, stride);
    one.most = most;
    one.estimated = EstimatedRows(layer, one);
    one.count = recall.Choose(layer, always, one.estimated, most);
  }
}

void Attention::SampleRecall(uint32_t layer, std::span<const Selecting> round, size_t stride) {
  for (size_t n = 0; n < round.size(); ++n) {
    const Selecting& one = round[n];
    const StepItem& item = items_[one.index];
    if (!item.recall || !item.recall->Samples(layer, item.position)) continue;
    double held = 1;
    const bool all = one.count == one.tokens - one.first;
    if (!all || one.most > 0) held = Measure(layer, one, n * config_.kv_heads * stride, stride);
    Sampled(layer, item, all ? 1 : held);
    if (progress_) progress_();
  }
}

void Attention::Sampled(uint32_t layer, const StepItem& item, double held) {
  counts_[layer].recall_sum += item.recall->Add(held);
  ++counts_[layer].recall_samples;
}

// What the lists at `offset` of the scratch hold, mean over the KV heads; corrects the sequence's
// choice where it has a target. Rows are read where they lie in the segment, wherever they are
// attended.
double Attention::Measure(uint32_t layer, const Selecting& one, size_t offset, size_t stride) {
  const StepItem& item = items_[one.index];
  const Competing among(one.tokens, one.first);
  const float* scores = step_lists_.scores + offset;
  const bool correct = one.most > 0;
  CHECK(options_.row_mass != nullptr);
  if (correct) CountScores(one, scores, stride);
  std::vector<MassCurve> heads;
  double held = 0;
  for (uint32_t head = 0; head < config_.kv_heads; ++head) {
    const float* mass = options_.row_mass;
    backend_.RowMass({.q = Query(first_[one.index], head),
                      .rows = HostRows(layer, item),
                      .kv_head = head,
                      .tokens = one.tokens,
                      .first = one.first,
                      .group = config_.group(),
                      .head_dim = config_.head_dim,
                      .scale = config_.attention_scale(),
                      .mass = options_.row_mass});
    const uint32_t* list = step_lists_.selection + offset + head * stride;
    for (uint32_t i = 0; i < one.count; ++i) held += mass[list[i]];
    if (!correct) continue;
    double always = 0;
    for (uint32_t t = one.first; t < among.begin; ++t) always += mass[t];
    for (uint32_t t = among.end; t < one.tokens; ++t) always += mass[t];
    heads.push_back(MassCurve::Measured(
        histograms_[head],
        BinMass(histograms_[head], scores + head * stride, among.begin, among.end), always));
  }
  if (correct) {
    const uint32_t needed = RowsForShare(heads, item.recall->target());
    const uint32_t always = AlwaysSetSize(one.tokens, one.first);
    if (item.recall->Correct(layer, always, one.estimated, needed, one.most)) {
      ++counts_[layer].fell_back;
    }
  }
  return held / config_.kv_heads;
}

// What the rows of each bin hold of options_.row_mass.
std::array<double, kScoreBins> Attention::BinMass(const ScoreHistogram& histogram,
                                                  const float* scores, uint32_t begin,
                                                  uint32_t end) const {
  std::array<double, kScoreBins> bins = {};
  const float per_score = histogram.bins_per_score();
  const bool logarithms = options_.channels->pooling == Pooling::kSoftmaxMass;
  for (uint32_t t = begin; t < end; ++t) {
    const float score = logarithms ? std::log(scores[t]) : scores[t];
    bins[ScoreHistogram::Bin(score, histogram.low, per_score)] += options_.row_mass[t];
  }
  return bins;
}

}  // namespace sparsekv
