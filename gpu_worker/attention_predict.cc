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
  return options_.fetcher && policy(layer).uncorrected && options_.fetcher->predicted(layer, index);
}

// Rows to predict among the tokens before the current one. Uncorrected, the current one comes on
// top and all stay within the budget, but for one row where that is the always-set.
uint32_t Attention::PredictedCount(const StepItem& item, const LayerPolicy& policy) const {
  const uint32_t before = item.position;
  const uint64_t budget = item.budget.At(item.position + 1);
  const uint64_t wanted = policy.uncorrected ? budget - 1 : budget * policy.prefetch_percent / 100;
  const uint32_t most = std::min(before, item.device->slots - 1);
  return static_cast<uint32_t>(
      std::clamp<uint64_t>(wanted, std::min(AlwaysSetSize(before), most), most));
}

bool Attention::predicts() const {
  return options_.predictor != nullptr && std::ranges::any_of(items_, [](const StepItem& item) {
           return !item.budget.dense() && item.offloaded();
         });
}

// The input of the layer after this one, to scratch.normed: this layer's, as published, and by how
// much the two have lately differed, which in trained models is much the same from token to token.
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
  backend_.Extrapolate({.x = scratch_.hidden,
                        .previous = scratch_.previous,
                        .tokens = tokens,
                        .width = config_.hidden_size,
                        .layer = layer,
                        .items = drifts,
                        .out = scratch_.normed});
}

void Attention::Predict(uint32_t layer, std::span<const uint32_t> positions,
                        std::span<const float> inverse_frequency) {
  if (!predicts()) return;
  const uint32_t next = layer + 1;
  const LayerPolicy& plan = policy(next);
  Timeline::Span span(options_.timeline, "predict", next);
  GuessInput(layer, static_cast<uint32_t>(positions.size()), plan.uncorrected);
  if (!plan.predict) return;
  std::vector<Selecting> selecting;
  for (uint32_t i = 0; i < items_.size(); ++i) {
    const StepItem& item = items_[i];
    if (item.budget.dense() || !item.offloaded() || item.position == 0) continue;
    selecting.push_back({i, item.position, PredictedCount(item, plan)});
  }
  options_.predictor->Predict(next, positions, inverse_frequency, scratch_);
  ForEachRound(next, true, selecting, [&](std::span<const Selecting> round, size_t stride) {
    std::vector<RowFetcher::Request> requests;
    for (size_t n = 0; n < round.size(); ++n) requests.push_back(RequestFor(round[n], n, stride));
    options_.fetcher->Prefetch(next, requests, stride, plan.uncorrected);
    if (measure_) KeepPrediction(next, round, stride);
  });
}

// Of the first round of a layer only: that of a batch that fits the scratch is all of it.
void Attention::KeepPrediction(uint32_t layer, std::span<const Selecting> round, size_t stride) {
  Kept& kept = kept_[layer % 2];
  if (kept.layer == layer) return;
  kept.layer = layer;
  kept.stride = stride;
  kept.round.assign(round.begin(), round.end());
  backend_.Copy(scratch_.kept + (layer % 2) * scratch_.selection_entries, scratch_.selection,
                round.size() * config_.kv_heads * stride * sizeof(uint32_t));
}

// How many of the predicted rows are in the true selection, which lies in scratch.selection.
void Attention::JudgePrediction(uint32_t layer, std::span<const Selecting> round, size_t stride) {
  const Kept& kept = kept_[layer % 2];
  if (kept.layer != layer) return;
  std::vector<OverlapArgs::Item> items;
  for (size_t n = 0; n < round.size(); ++n) {
    const auto found = std::ranges::find(kept.round, round[n].index, &Selecting::index);
    if (found == kept.round.end()) continue;
    const size_t place = static_cast<size_t>(found - kept.round.begin());
    const size_t common = judged_.size() * config_.kv_heads;
    items.push_back({.a = scratch_.selection + n * config_.kv_heads * stride,
                     .b = scratch_.kept + (layer % 2) * scratch_.selection_entries +
                          place * config_.kv_heads * kept.stride,
                     .a_stride = stride,
                     .b_stride = kept.stride,
                     .a_count = round[n].count,
                     .b_count = found->count,
                     .common = scratch_.common + common});
    judged_.push_back({layer, uint64_t{found->count} * config_.kv_heads, common});
  }
  if (!items.empty()) backend_.Overlap({.kv_heads = config_.kv_heads, .items = items});
}

}  // namespace sparsekv
