#include "gpu_worker/experts.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace sparsekv {

void RouteToken(const ExpertsConfig& experts, std::span<const float> logits,
                std::vector<ExpertChoice>& chosen) {
  const float highest = *std::ranges::max_element(logits);
  chosen.clear();
  float total = 0;
  for (uint32_t i = 0; i < logits.size(); ++i) {
    chosen.push_back({i, std::exp(logits[i] - highest)});
    total += chosen.back().weight;
  }
  for (ExpertChoice& one : chosen) {
    one.weight /= total;
    if (!(one.weight >= 0)) one.weight = 0;  // NaN has no order
  }
  std::ranges::stable_sort(chosen, std::ranges::greater{}, &ExpertChoice::weight);
  chosen.resize(experts.per_token);
  if (experts.normalise) {
    float sum = 0;
    for (const ExpertChoice& one : chosen) sum += one.weight;
    for (ExpertChoice& one : chosen) one.weight /= sum;
  }
  std::ranges::sort(chosen, {}, &ExpertChoice::expert);
}

void Experts::Route(const LayerWeights& layer, uint32_t tokens) {
  backend_.Linear(
      {.x = scratch_.normed, .tokens = tokens, .weight = layer.router, .y = scratch_.router});
  const uint32_t count = config_.experts.count;
  places_.resize(count);
  for (std::vector<Place>& places : places_) places.clear();
  for (uint32_t t = 0; t < tokens; ++t) {
    RouteToken(config_.experts, {scratch_.router + size_t{t} * count, count}, chosen_);
    for (const ExpertChoice& one : chosen_) places_[one.expert].push_back({t, one.weight});
  }
}

// scratch.mixed += weight * expert(scratch.normed), of the tokens that took the expert.
void Experts::AddExpert(const ExpertWeights& expert, std::span<const Place> places) {
  const size_t width = config_.hidden_size;
  const auto tokens = static_cast<uint32_t>(places.size());
  for (uint32_t i = 0; i < tokens; ++i) {
    std::copy_n(scratch_.normed + places[i].token * width, width, scratch_.expert_in + i * width);
  }
  const float* in = scratch_.expert_in;
  backend_.Linear({.x = in, .tokens = tokens, .weight = expert.gate, .y = scratch_.gate});
  backend_.Linear({.x = in, .tokens = tokens, .weight = expert.up, .y = scratch_.up});
  backend_.SwiGlu({.gate = scratch_.gate,
                   .up = scratch_.up,
                   .tokens = tokens,
                   .width = config_.experts.intermediate_size});
  backend_.Linear(
      {.x = scratch_.gate, .tokens = tokens, .weight = expert.down, .y = scratch_.expert_in});
  for (uint32_t i = 0; i < tokens; ++i) {
    const float* from = scratch_.expert_in + i * width;
    float* to = scratch_.mixed + places[i].token * width;
    for (size_t c = 0; c < width; ++c) to[c] += places[i].weight * from[c];
  }
}

void Experts::Add(const LayerWeights& layer, float* hidden, uint32_t tokens) {
  CHECK(backend_.host_memory());
  backend_.RmsNorm({.x = hidden,
                    .tokens = tokens,
                    .weight = layer.mlp_norm,
                    .epsilon = config_.rms_norm_eps,
                    .out = scratch_.normed});
  Route(layer, tokens);
  const size_t floats = size_t{tokens} * config_.hidden_size;
  std::fill_n(scratch_.mixed, floats, 0.0f);
  experts_read_ = 0;
  for (uint32_t i = 0; i < config_.experts.count; ++i) {
    if (places_[i].empty()) continue;
    AddExpert(layer.experts[i], places_[i]);
    ++experts_read_;
  }
  for (size_t i = 0; i < floats; ++i) hidden[i] += scratch_.mixed[i];
}

}  // namespace sparsekv
