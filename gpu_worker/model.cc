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
      experts_(*options.config, options.backend, options.scratch) {}

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
  attention_->BeginPass(items, first_);
}

void Model::BeginStep(StepKind kind) {
  compared_.clear();
  backend_->BeginStep(kind);
}

void Model::EndStep() {
  cosines_seen_.resize(compared_.size() * tokens_);
  for (size_t i = 0; i < compared_.size(); ++i) {
    backend_->Fetch(cosines_seen_.data() + i * tokens_,
                    scratch_.cosines + compared_[i] * scratch_.max_logit_rows,
                    tokens_ * sizeof(float));
  }
  attention_->FetchNotes();
  backend_->EndStep();
  for (size_t i = 0; i < compared_.size(); ++i) {
    LayerCounts& counts = attention_->counts()[compared_[i]];
    for (uint32_t t = 0; t < tokens_; ++t) counts.similarity_sum += cosines_seen_[i * tokens_ + t];
    counts.similarity_count += tokens_;
  }
  attention_->EndStep();
}

void Model::Forward(std::span<const StepItem> items) {
  BeginPass(items);
  hidden_ = scratch_.hidden;
  backend_->Embed({.ids = ids_, .table = weights_->embed, .out = hidden_});
  for (uint32_t layer = 0; layer < config_->layers; ++layer) {
    Layer(layer);
  }
}

void Model::ForwardLayer(uint32_t layer, const StepItem& item, float* hidden) {
  BeginPass({&item, 1});
  hidden_ = hidden;
  if (layer == 0) backend_->Embed({.ids = ids_, .table = weights_->embed, .out = hidden_});
  Layer(layer);
}

// hidden += Wo . attend(rope(Wq . norm(hidden)), rows)
// hidden += down . (silu(gate . n) * (up . n)), n = norm(hidden); or the sum of some such, experts
void Model::Layer(uint32_t layer) {
  if (measure_ && layer > 0) MeasureSimilarity(layer);
  if (measure_ || attention_->predicts()) attention_->KeepInput(layer, hidden_, tokens_);
  if (layer + 1 < config_->layers) {
    attention_->Predict(layer, positions_);
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
  const ProjectArgs::Output outputs[] = {
      {w.wq, scratch_.q}, {w.wk, scratch_.k}, {w.wv, scratch_.v}};
  backend_->Project({.x = hidden_,
                     .tokens = tokens_,
                     .norm = w.attention_norm,
                     .epsilon = config_->rms_norm_eps,
                     .normed = scratch_.normed,
                     .outputs = outputs});
  AddBias(scratch_.q, w.bq);
  AddBias(scratch_.k, w.bk);
  AddBias(scratch_.v, w.bv);
  NormHeads(scratch_.q, config_->heads, w.q_norm);
  NormHeads(scratch_.k, config_->kv_heads, w.k_norm);
  attention_->Append(layer, positions_);
}

void Model::Mlp(uint32_t layer) {
  Timeline::Span span(timeline_, "mlp", layer);
  const LayerWeights& w = weights_->layers[layer];
  Add(scratch_.attended, w.wo);
  AddBias(hidden_, w.bo);
  if (config_->has_experts(layer)) return experts_.Add(w, hidden_, tokens_);
  GateUp(w);
  Add(scratch_.gate, w.down);
  AddBias(hidden_, w.bdown);
}

// To scratch.gate.
void Model::GateUp(const LayerWeights& w) {
  if (!config_->mlp_bias) {
    return backend_->GateUp({.x = hidden_,
                             .tokens = tokens_,
                             .norm = w.mlp_norm,
                             .epsilon = config_->rms_norm_eps,
                             .gate = w.gate,
                             .up = w.up,
                             .normed = scratch_.normed,
                             .spare = scratch_.up,
                             .out = scratch_.gate});
  }
  const ProjectArgs::Output outputs[] = {{w.gate, scratch_.gate}, {w.up, scratch_.up}};
  backend_->Project({.x = hidden_,
                     .tokens = tokens_,
                     .norm = w.mlp_norm,
                     .epsilon = config_->rms_norm_eps,
                     .normed = scratch_.normed,
                     .outputs = outputs});
  AddBias(scratch_.gate, w.bgate);
  AddBias(scratch_.up, w.bup);
  backend_->SwiGlu({.gate = scratch_.gate,
                    .up = scratch_.up,
                    .tokens = tokens_,
                    .width = config_->intermediate_size});
}

void Model::AddBias(float* x, const WeightView& bias) {
  if (bias.data != nullptr) backend_->AddBias({.x = x, .tokens = tokens_, .bias = bias});
}

void Model::NormHeads(float* x, uint32_t heads, const WeightView& norm) {
  if (norm.data == nullptr) return;
  backend_->RmsNorm({.x = x,
                     .tokens = tokens_ * heads,
                     .weight = norm,
                     .epsilon = config_->rms_norm_eps,
                     .out = x});
}

// Against the input of the layer before, which was kept.
void Model::MeasureSimilarity(uint32_t layer) {
  backend_->Cosine({.a = hidden_,
                    .b = scratch_.Input(*config_, layer - 1),
                    .tokens = tokens_,
                    .width = config_->hidden_size,
                    .out = scratch_.cosines + layer * scratch_.max_logit_rows});
  compared_.push_back(layer);
}

const float* Model::Logits(uint32_t first, uint32_t tokens) {
  CHECK_LE(first + tokens, tokens_);
  CHECK_LE(tokens, scratch_.max_logit_rows);
  Timeline::Span span(timeline_, "head", config_->layers);
  const ProjectArgs::Output output = {weights_->lm_head, scratch_.logits};
  backend_->Project({.x = hidden_ + size_t{first} * config_->hidden_size,
                     .tokens = tokens,
                     .norm = weights_->norm,
                     .epsilon = config_->rms_norm_eps,
                     .normed = scratch_.normed,
                     .outputs = {&output, 1}});
  return scratch_.logits;
}

void Model::Add(const float* x, const WeightView& weight) {
  backend_->Linear({.x = x, .tokens = tokens_, .weight = weight, .y = hidden_, .accumulate = true});
}

}  // namespace sparsekv
