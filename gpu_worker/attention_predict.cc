// Attention: predictions of the next layer's rows, and how good they are.
#include <algorithm>

#include "base/check.h"
#include "gpu_worker/attention.h"

namespace sparsekv {

namespace {

// How fast a drift follows: the mean of some 10 steps. On a trained checkpoint, 0.05 to 0.2 are as
// good as each other, and 0.5 is worse.
constexpr float kDriftRate = 0.1f;

}  // namespace

const LayerPolicy& Attention::policy(uint32_t layer) const {
  static constexpr LayerPolicy kNone;
  return layer < policies_.size() ? policies_[layer] : kNone;
}

bool Attention::uncorrected(uint32_t layer, uint32_t index) const {
  return options_.fetcher && policy(layer).uncorrected && !adaptive(index) &&
         options_.fetcher->predicted(layer, index);
}

// Rows to predict among the tokens before the current one, in the window that it will have.
// Uncorrected, the current one comes on top and all stay within the budget, but for one row where
// that is the always-set. With a recall target: about as many as in the last step.
uint32_t Attention::PredictedCount(uint32_t layer, const StepItem& item) const {
  const LayerPolicy& plan = policy(layer);
  const uint32_t before = item.position, first = item.First(config_.window(layer));
  const bool chosen = item.recall && item.recall->adaptive() && item.recall->rows(layer) > 0;
  const uint64_t budget =
      chosen ? item.recall->rows(layer) : item.budget.At(item.position + 1, first);
  const uint64_t wanted =
      plan.uncorrected && !chosen ? budget - 1 : budget * plan.prefetch_percent / 100;
  const uint32_t most = std::min(before - first, item.device->slots - 1);
  return static_cast<uint32_t>(
      std::clamp<uint64_t>(wanted, std::min(AlwaysSetSize(before, first), most), most));
}

bool Attention::predicts() const {
  return options_.predictor != nullptr && std::ranges::any_of(items_, [](const StepItem& item) {
           return !item.budget.dense() && item.offloaded();
         });
}

// The input of the layer after this one, to scratch.ahead.normed: this layer's, as published, and
// by how much the two have lately differed, which in trained models is much the same from token to
// token.
void Attention::GuessInput(uint32_t layer, uint32_t tokens, bool as_published) {
  std::vector<ExtrapolateArgs::Item> drifts;
  for (uint32_t i = 0; i < items_.size(); ++i) {
    const StepItem& item = items_[i];
    if (item.budget.dense() || !item.offloaded()) continue;
    LayerDrift& drift = *item.device->drift;
    if (layer == 0) ++drift.steps;
    if (as_published) continue;
    const float rate = std::max(kDriftRate, 1.0f / static_cast<float>(drift.steps));
    drifts.push_back({.token = first_[i], .drift = drift.values, .rate = rate});
  }
  backend_.Extrapolate({.x = scratch_.Input(config_, layer),
                        .previous = scratch_.Input(config_, layer + Scratch::kInputs - 1),
                        .tokens = tokens,
                        .width = config_.hidden_size,
                        .layer = layer,
                        .items = drifts,
                        .out = scratch_.ahead.normed});
}

// What was kept here before was last used by the prediction two layers ago.
void Attention::KeepInput(uint32_t layer, const float* hidden, uint32_t tokens) {
  CHECK_LE(tokens, scratch_.max_logit_rows);
  if (guessed_.size() >= 2 && layer >= 2) backend_.WaitFor(guessed_[layer - 2]);
  backend_.Copy(scratch_.Input(config_, layer), hidden,
                size_t{tokens} * config_.hidden_size * sizeof(float));
}

void Attention::Predict(uint32_t layer, std::span<const uint32_t> positions) {
  if (!predicts()) return;
  const uint32_t next = layer + 1;
  const LayerPolicy& plan = policy(next);
  Timeline::Span span(options_.timeline, "predict", next);
  const uint32_t kept = backend_.Mark();
  backend_.UseLane(Lane::kPredict);
  backend_.WaitFor(kept);
  GuessInput(layer, static_cast<uint32_t>(positions.size()), plan.uncorrected);
  guessed_.push_back(backend_.Mark());
  if (plan.predict) PredictRows(next, positions);
  backend_.UseLane(Lane::kCompute);
}

void Attention::PredictRows(uint32_t layer, std::span<const uint32_t> positions) {
  const LayerPolicy& plan = policy(layer);
  std::vector<Selecting> selecting;
  for (uint32_t i = 0; i < items_.size(); ++i) {
    const StepItem& item = items_[i];
    const uint32_t first = item.First(config_.window(layer));
    if (dense(layer, item) || !item.offloaded() || item.position == first) continue;
    selecting.push_back({i, item.position, first, PredictedCount(layer, item)});
  }
  options_.predictor->Project(layer, static_cast<uint32_t>(positions.size()), scratch_.ahead);
  for (const RopeRun& run : RopeRuns()) {
    backend_.Rope(
        {.x = scratch_.ahead.q + size_t{run.first_token} * config_.heads * config_.head_dim,
         .positions = positions.subspan(run.first_token, run.tokens),
         .inverse_frequency = run.inverse_frequency,
         .heads = config_.heads,
         .head_dim = config_.head_dim});
  }
  ForEachRound(layer, true, selecting, [&](std::span<const Selecting> round, size_t stride) {
    std::vector<RowFetcher::Request> requests;
    for (size_t n = 0; n < round.size(); ++n) {
      requests.push_back(RequestFor(round[n], true, n, stride));
    }
    if (measure_) KeepPrediction(layer, round, stride);
    options_.fetcher->Prefetch(layer, requests, stride, plan.uncorrected);
  });
}

// As many of a layer's rounds as there is room for: of a batch that fits the scratch, all.
void Attention::KeepPrediction(uint32_t layer, std::span<const Selecting> round, size_t stride) {
  Kept& kept = kept_[layer % 2];
  if (kept.layer != layer) kept = {.layer = layer};
  const size_t entries = round.size() * config_.kv_heads * stride;
  if (kept.used + entries > scratch_.selection_entries) return;
  backend_.Copy(scratch_.kept + (layer % 2) * scratch_.selection_entries + kept.used,
                ahead_lists_.selection, entries * sizeof(uint32_t));
  for (size_t n = 0; n < round.size(); ++n) {
    kept.lists.push_back({round[n], kept.used + n * config_.kv_heads * stride, stride});
  }
  kept.used += entries;
}

// How many of the predicted rows are in the true selection, which lies in scratch.selection.
void Attention::JudgePrediction(uint32_t layer, std::span<const Selecting> round, size_t stride) {
  const Kept& kept = kept_[layer % 2];
  if (kept.layer != layer) return;
  std::vector<OverlapArgs::Item> items;
  for (size_t n = 0; n < round.size(); ++n) {
    const auto found = std::ranges::find_if(
        kept.lists, [&](const Kept::List& list) { return list.of.index == round[n].index; });
    if (found == kept.lists.end()) continue;
    const size_t common = judged_.size() * config_.kv_heads;
    items.push_back({.a = scratch_.selection + n * config_.kv_heads * stride,
                     .b = scratch_.kept + (layer % 2) * scratch_.selection_entries + found->offset,
                     .a_stride = stride,
                     .b_stride = found->stride,
                     .a_count = round[n].count,
                     .b_count = found->of.count,
                     .common = scratch_.common + common});
    judged_.push_back({layer, uint64_t{found->of.count} * config_.kv_heads, common});
  }
  if (!items.empty()) backend_.Overlap({.kv_heads = config_.kv_heads, .items = items});
}

}  // namespace sparsekv
