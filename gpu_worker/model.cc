#include "gpu_worker/model.h"

#include <algorithm>

#include "base/check.h"

namespace sparsekv {

Model::Model(const Options& options)
    : config_(options.config),
      weights_(options.weights),
      backend_(options.backend),
      scratch_(options.scratch),
      attention_(options.attention),
      timeline_(options.timeline),
      inverse_frequency_(options.config->InverseFrequency()) {}

void Model::set_measure(bool measure) {
  measure_ = measure;
  attention_->set_measure(measure);
}

void Model::BeginPass(std::span<const StepItem> items) {
  ids_.clear();
  positions_.clear();
  first_.clear();
  for (const StepItem& item : items) {
    first_.push_back(static_cast<uint32_t>(ids_.size()));
    for (size_t i = 0; i < item.ids.size(); ++i) {
      ids_.push_back(item.ids[i]);
      positions_.push_back(item.position + static_cast<uint32_t>(i));
    }
  }
  tokens_ = static_cast<uint32_t>(ids_.size());
  CHECK_LE(tokens_, scratch_.max_tokens);
  attention_->BeginStep(items, first_);
}

void Model::Forward(std::span<const StepItem> items) {
  BeginPass(items);
  backend_->Embed({.ids = ids_, .table = weights_->embed, .out = scratch_.hidden});
  for (uint32_t layer = 0; layer < config_->layers; ++layer) {
    Layer(layer);
  }
}

void Model::ForwardLayer(uint32_t layer, const StepItem& item, float* hidden) {
  BeginPass({&item, 1});
  const size_t values = size_t{tokens_} * config_->hidden_size;
  if (layer == 0) {
    backend_->Embed({.ids = ids_, .table = weights_->embed, .out = scratch_.hidden});
  } else {
    std::copy_n(hidden, values, scratch_.hidden);
  }
  Layer(layer);
  std::copy_n(scratch_.hidden, values, hidden);
}

// hidden += Wo . attend(rope(Wq . norm(hidden)), rows)
// hidden += down . (silu(gate . n) * (up . n)), n = norm(hidden)
void Model::Layer(uint32_t layer) {
  if (measure_ && layer > 0) MeasureSimilarity(layer);
  if (layer + 1 < config_->layers) {
    attention_->Predict(layer, positions_, inverse_frequency_);
  }
  if (measure_ || attention_->predicts()) {
    CHECK_LE(tokens_, scratch_.max_logit_rows);
    std::copy_n(scratch_.hidden, size_t{tokens_} * config_->hidden_size, scratch_.previous);
  }
  Project(layer);
  if (observer_) observer_(layer, scratch_.q, scratch_.k, tokens_);
  attention_->Run(layer);
  Mlp(layer);
  if (progress_) progress_();
}

void Model::Project(uint32_t layer) {
  Timeline::Span span(timeline_, "project", layer);
  const LayerWeights& w = weights_->layers[layer];
  Norm(scratch_.hidden, tokens_, w.attention_norm, scratch_.normed);
  Multiply(scratch_.normed, tokens_, w.wq, scratch_.q);
  Multiply(scratch_.normed, tokens_, w.wk, scratch_.k);
  Multiply(scratch_.normed, tokens_, w.wv, scratch_.v);
  for (auto [x, heads] : {std::pair{scratch_.q, config_->heads}, {scratch_.k, config_->kv_heads}}) {
    backend_->Rope({.x = x,
                    .positions = positions_,
                    .inverse_frequency = inverse_frequency_,
                    .heads = heads,
                    .head_dim = config_->head_dim});
  }
}

void Model::Mlp(uint32_t layer) {
  Timeline::Span span(timeline_, "mlp", layer);
  const LayerWeights& w = weights_->layers[layer];
  Multiply(scratch_.attended, tokens_, w.wo, scratch_.hidden, /*accumulate=*/true);
  Norm(scratch_.hidden, tokens_, w.mlp_norm, scratch_.normed);
  Multiply(scratch_.normed, tokens_, w.gate, scratch_.gate);
  Multiply(scratch_.normed, tokens_, w.up, scratch_.up);
  backend_->SwiGlu({.gate = scratch_.gate,
                    .up = scratch_.up,
                    .tokens = tokens_,
                    .width = config_->intermediate_size});
  Multiply(scratch_.gate, tokens_, w.down, scratch_.hidden, /*accumulate=*/true);
}

// Against the input of the layer before, in scratch.previous.
void Model::MeasureSimilarity(uint32_t layer) {
  cosines_.resize(tokens_);
  backend_->Cosine({.a = scratch_.hidden,
                    .b = scratch_.previous,
                    .tokens = tokens_,
                    .width = config_->hidden_size,
                    .out = cosines_.data()});
  LayerCounts& counts = attention_->counts()[layer];
  for (float cosine : cosines_) counts.similarity_sum += cosine;
  counts.similarity_count += tokens_;
}

const float* Model::Logits(uint32_t first, uint32_t tokens) {
  CHECK_LE(first + tokens, tokens_);
  CHECK_LE(tokens, scratch_.max_logit_rows);
  const size_t offset = size_t{first} * config_->hidden_size;
  Norm(scratch_.hidden + offset, tokens, weights_->norm, scratch_.normed);
  Multiply(scratch_.normed, tokens, weights_->lm_head, scratch_.logits);
  return scratch_.logits;
}

void Model::Norm(const float* x, uint32_t tokens, const WeightView& weight, float* out) {
  backend_->RmsNorm(
      {.x = x, .tokens = tokens, .weight = weight, .epsilon = config_->rms_norm_eps, .out = out});
}

void Model::Multiply(const float* x, uint32_t tokens, const WeightView& weight, float* y,
                     bool accumulate) {
  backend_->Linear({.x = x, .tokens = tokens, .weight = weight, .y = y, .accumulate = accumulate});
}

}  // namespace sparsekv
