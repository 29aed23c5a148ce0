#include "gpu_worker/model.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace sparsekv {

uint64_t StepItem::rows_per_head() const {
  if (!budget.dense()) return budget.At(position + 1);
  const uint64_t n = ids.size();
  return n * position + n * (n + 1) / 2;
}

Model::Model(const Options& options)
    : config_(options.config),
      weights_(options.weights),
      channels_(options.channels),
      backend_(options.backend),
      scratch_(options.scratch),
      row_layout_(options.row_layout),
      row_pool_(options.row_pool),
      inverse_frequency_(options.config->InverseFrequency()) {
  CHECK_EQ(row_layout_.layers, config_->layers);
  CHECK_EQ(row_layout_.kv_heads, config_->kv_heads);
  CHECK_EQ(row_layout_.head_dim, config_->head_dim);
  if (channels_) label_layout_ = {config_->layers, config_->kv_heads, channels_->channels};
}

void Model::Forward(std::span<const StepItem> items) {
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

  backend_->Embed({.ids = ids_, .table = weights_->embed, .out = scratch_.hidden});
  for (uint32_t layer = 0; layer < config_->layers; ++layer) {
    Attention(layer, items);
    Mlp(layer);
    if (progress_) progress_();
  }
}

// hidden += Wo . attend(rope(Wq . norm(hidden)), rows)
void Model::Attention(uint32_t layer, std::span<const StepItem> items) {
  const LayerWeights& w = weights_->layers[layer];
  Norm(scratch_.hidden, tokens_, w.attention_norm, scratch_.normed);
  Project(scratch_.normed, tokens_, w.wq, scratch_.q);
  Project(scratch_.normed, tokens_, w.wk, scratch_.k);
  Project(scratch_.normed, tokens_, w.wv, scratch_.v);
  for (auto [x, heads] : {std::pair{scratch_.q, config_->heads}, {scratch_.k, config_->kv_heads}}) {
    backend_->Rope({.x = x,
                    .positions = positions_,
                    .inverse_frequency = inverse_frequency_,
                    .heads = heads,
                    .head_dim = config_->head_dim});
  }
  if (observer_) observer_(layer, scratch_.q, scratch_.k, tokens_);
  Append(layer, items);
  AttendAll(layer, items);
  Project(scratch_.attended, tokens_, w.wo, scratch_.hidden, /*accumulate=*/true);
}

// hidden += down . (silu(gate . n) * (up . n)), n = norm(hidden)
void Model::Mlp(uint32_t layer) {
  const LayerWeights& w = weights_->layers[layer];
  Norm(scratch_.hidden, tokens_, w.mlp_norm, scratch_.normed);
  Project(scratch_.normed, tokens_, w.gate, scratch_.gate);
  Project(scratch_.normed, tokens_, w.up, scratch_.up);
  backend_->SwiGlu({.gate = scratch_.gate,
                    .up = scratch_.up,
                    .tokens = tokens_,
                    .width = config_->intermediate_size});
  Project(scratch_.gate, tokens_, w.down, scratch_.hidden, /*accumulate=*/true);
}

const float* Model::Logits(uint32_t first, uint32_t tokens) {
  CHECK_LE(first + tokens, tokens_);
  CHECK_LE(tokens, scratch_.max_logit_rows);
  const size_t offset = size_t{first} * config_->hidden_size;
  Norm(scratch_.hidden + offset, tokens, weights_->norm, scratch_.normed);
  Project(scratch_.normed, tokens, weights_->lm_head, scratch_.logits);
  return scratch_.logits;
}

void Model::Norm(const float* x, uint32_t tokens, const WeightView& weight, float* out) {
  backend_->RmsNorm(
      {.x = x, .tokens = tokens, .weight = weight, .epsilon = config_->rms_norm_eps, .out = out});
}

void Model::Project(const float* x, uint32_t tokens, const WeightView& weight, float* y,
                    bool accumulate) {
  backend_->Linear({.x = x, .tokens = tokens, .weight = weight, .y = y, .accumulate = accumulate});
}

void Model::Append(uint32_t layer, std::span<const StepItem> items) {
  std::vector<AppendRowsArgs::Item> rows;
  std::vector<AppendLabelsArgs::Item> labels;
  for (size_t i = 0; i < items.size(); ++i) {
    rows.push_back({Span(items, i), Rows(layer, items[i])});
    if (items[i].label_pages) labels.push_back({Span(items, i), Labels(layer, items[i])});
  }
  backend_->AppendRows({.k = scratch_.k, .v = scratch_.v, .items = rows});
  if (labels.empty()) return;
  backend_->AppendLabels({.k = scratch_.k,
                          .kv_heads = config_->kv_heads,
                          .head_dim = config_->head_dim,
                          .row_dtype = row_layout_.dtype,
                          .channels = channels_->Layer(layer),
                          .items = labels});
}

void Model::AttendAll(uint32_t layer, std::span<const StepItem> items) {
  AttendDense(layer, items);
  for (size_t from = 0; from < items.size();) {
    uint32_t stride = 0;
    const size_t to = SelectionRound(items, from, &stride);
    if (stride > 0) SelectAndAttend(layer, items, from, to, stride);
    from = to;
  }
}

void Model::AttendDense(uint32_t layer, std::span<const StepItem> items) {
  std::vector<AttendArgs::Item> dense;
  for (size_t i = 0; i < items.size(); ++i) {
    if (!items[i].budget.dense()) continue;
    dense.push_back({.span = Span(items, i), .rows = Rows(layer, items[i])});
  }
  if (dense.empty()) return;
  backend_->Attend({.q = scratch_.q,
                    .out = scratch_.attended,
                    .kv_heads = config_->kv_heads,
                    .group = config_->heads / config_->kv_heads,
                    .head_dim = config_->head_dim,
                    .scale = 1.0f / std::sqrt(static_cast<float>(config_->head_dim)),
                    .items = dense});
}

// The items [from, result) whose scores fit the scratch together; *stride is the most tokens among
// those that select, 0 when none does.
size_t Model::SelectionRound(std::span<const StepItem> items, size_t from, uint32_t* stride) {
  size_t to = from, selecting = 0;
  for (; to < items.size(); ++to) {
    if (items[to].budget.dense()) continue;
    const uint32_t longest = std::max(*stride, items[to].position + 1);
    const size_t entries = (selecting + 1) * longest * config_->kv_heads;
    if (entries > scratch_.selection_entries) break;
    *stride = longest;
    ++selecting;
  }
  CHECK_GT(to, from);  // one sequence alone always fits
  return to;
}

// Labels are scored with the true q, the best rows and the always-set attended exactly.
void Model::SelectAndAttend(uint32_t layer, std::span<const StepItem> items, size_t from, size_t to,
                            uint32_t stride) {
  CHECK(channels_ != nullptr);
  std::vector<ScoreLabelsArgs::Item> score;
  std::vector<SelectArgs::Item> select;
  std::vector<AttendArgs::Item> attend;
  std::vector<uint32_t> index;
  for (size_t i = from; i < to; ++i) {
    if (items[i].budget.dense()) continue;
    CHECK_EQ(items[i].ids.size(), size_t{1});
    const uint32_t tokens = items[i].position + 1;
    const uint32_t count = items[i].budget.At(tokens);
    const size_t offset = score.size() * size_t{config_->kv_heads} * stride;
    score.push_back({.query = first_[i],
                     .tokens = tokens,
                     .labels = Labels(layer, items[i]),
                     .scores = scratch_.scores + offset});
    select.push_back({.scores = scratch_.scores + offset,
                      .tokens = tokens,
                      .count = count,
                      .selection = scratch_.selection + offset});
    attend.push_back({.span = Span(items, i),
                      .rows = Rows(layer, items[i]),
                      .selection = scratch_.selection + offset,
                      .count = count});
    index.push_back(static_cast<uint32_t>(i));
  }
  const uint32_t group = config_->heads / config_->kv_heads;
  backend_->ScoreLabels({.q = scratch_.q,
                         .kv_heads = config_->kv_heads,
                         .group = group,
                         .head_dim = config_->head_dim,
                         .channels = channels_->Layer(layer),
                         .pooling = channels_->pooling,
                         .score_stride = stride,
                         .items = score});
  backend_->Select({.kv_heads = config_->kv_heads,
                    .score_stride = stride,
                    .selection_stride = stride,
                    .items = select});
  for (size_t i = 0; on_selection_ && i < select.size(); ++i) {
    for (uint32_t head = 0; head < config_->kv_heads; ++head) {
      on_selection_(layer, index[i], head,
                    {select[i].selection + size_t{head} * stride, select[i].count});
    }
  }
  backend_->Attend({.q = scratch_.q,
                    .out = scratch_.attended,
                    .kv_heads = config_->kv_heads,
                    .group = group,
                    .head_dim = config_->head_dim,
                    .scale = 1.0f / std::sqrt(static_cast<float>(config_->head_dim)),
                    .selection_stride = stride,
                    .items = attend});
}

RowTable Model::Rows(uint32_t layer, const StepItem& item) const {
  return {row_pool_ + layer * row_layout_.layer_stride(), item.blocks, &row_layout_};
}

LabelTable Model::Labels(uint32_t layer, const StepItem& item) const {
  CHECK(item.label_pages != nullptr);
  return {item.label_pages, &label_layout_, layer};
}

StepSpan Model::Span(std::span<const StepItem> items, size_t i) const {
  return {first_[i], static_cast<uint32_t>(items[i].ids.size()), items[i].position};
}

}  // namespace sparsekv
