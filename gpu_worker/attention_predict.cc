// Attention: predictions of the next layer's rows, and how good they are.
#include <algorithm>
#include <iterator>

#include "base/check.h"
#include "gpu_worker/attention.h"

namespace sparsekv {

const LayerPolicy& Attention::policy(uint32_t layer) const {
  static constexpr LayerPolicy kNone;
  return layer < policies_.size() ? policies_[layer] : kNone;
}

bool Attention::uncorrected(uint32_t layer, uint32_t index) const {
  return options_.fetcher && policy(layer).uncorrected && options_.fetcher->predicted(layer, index);
}

// Rows to predict among the tokens before the current one. Uncorrected, the current one comes on
// top and all must stay within the budget.
uint32_t Attention::PredictedCount(const StepItem& item, const LayerPolicy& policy) const {
  const uint32_t before = item.position;
  const uint64_t budget = item.budget.At(item.position + 1);
  const uint64_t wanted = policy.uncorrected ? budget - 1 : budget * policy.prefetch_percent / 100;
  const uint32_t most = std::min(before, item.device->slots - 1);
  return static_cast<uint32_t>(
      std::clamp<uint64_t>(wanted, std::min(AlwaysSetSize(before), most), most));
}

void Attention::Predict(uint32_t layer, const float* input, std::span<const uint32_t> positions,
                        std::span<const float> inverse_frequency) {
  const LayerPolicy& plan = policy(layer);
  if (!options_.predictor || !plan.predict) return;
  std::vector<Selecting> selecting;
  for (uint32_t i = 0; i < items_.size(); ++i) {
    const StepItem& item = items_[i];
    if (item.budget.dense() || !item.offloaded() || item.position == 0) continue;
    selecting.push_back({i, item.position, PredictedCount(item, plan)});
  }
  if (selecting.empty()) return;
  Timeline::Span span(options_.timeline, "predict", layer);
  options_.predictor->Predict(layer, input, positions, inverse_frequency, scratch_);
  ForEachRound(layer, true, selecting, [&](std::span<const Selecting> round, size_t stride) {
    std::vector<RowFetcher::Request> requests;
    for (size_t n = 0; n < round.size(); ++n) requests.push_back(RequestFor(round[n], n, stride));
    options_.fetcher->Prefetch(layer, requests, stride, plan.uncorrected);
    if (measure_) KeepPrediction(layer, round, stride);
  });
}

void Attention::KeepPrediction(uint32_t layer, std::span<const Selecting> round, size_t stride) {
  for (size_t n = 0; n < round.size(); ++n) {
    std::vector<uint32_t>& kept = kept_[layer % 2][round[n].index];
    kept.clear();
    for (uint32_t head = 0; head < config_.kv_heads; ++head) {
      const uint32_t* list = scratch_.selection + (n * config_.kv_heads + head) * stride;
      kept.insert(kept.end(), list, list + round[n].count);
    }
  }
}

// How many of the predicted rows are in the true selection, which lies in scratch.selection.
void Attention::JudgePrediction(uint32_t layer, std::span<const Selecting> round, size_t stride) {
  for (size_t n = 0; n < round.size(); ++n) {
    const uint32_t index = round[n].index;
    if (!options_.fetcher || !options_.fetcher->predicted(layer, index)) continue;
    const std::vector<uint32_t>& kept = kept_[layer % 2][index];
    const size_t predicted = kept.size() / config_.kv_heads;
    counts_[layer].predicted += kept.size();
    for (uint32_t head = 0; head < config_.kv_heads; ++head) {
      const uint32_t* truth = scratch_.selection + (n * config_.kv_heads + head) * stride;
      std::vector<uint32_t> both;
      std::set_intersection(truth, truth + round[n].count, kept.begin() + head * predicted,
                            kept.begin() + (head + 1) * predicted, std::back_inserter(both));
      counts_[layer].predicted_selected += both.size();
    }
  }
}

}  // namespace sparsekv
