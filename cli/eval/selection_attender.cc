#include "cli/eval/selection_attender.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/check.h"
#include "kernels/half.h"

namespace sparsekv {

namespace {

// The rows of one KV head, as a table of their own.
RowTable HeadRows(const RowTable& rows, uint32_t kv_head) {
  return {rows.layer_base + kv_head * rows.layout->head_stride(), rows.blocks, rows.layout};
}

// Turns a key, half-split, by `delta` positions.
void Turn(float* key, uint32_t head_dim, int64_t delta, std::span<const float> inverse_frequency) {
  const uint32_t half = head_dim / 2;
  for (uint32_t c = 0; c < half; ++c) {
    const double angle = static_cast<double>(delta) * inverse_frequency[c];
    const auto cosine = static_cast<float>(std::cos(angle));
    const auto sine = static_cast<float>(std::sin(angle));
    const float x = key[c], y = key[c + half];
    key[c] = x * cosine - y * sine;
    key[c + half] = y * cosine + x * sine;
  }
}

}  // namespace

SelectionAttender::SelectionAttender(const ModelConfig& config, Backend* backend,
                                     uint32_t max_tokens)
    : config_(config), backend_(backend), inverse_frequency_(config.InverseFrequency()) {
  CHECK(backend->host_memory());
  const uint32_t blocks = (max_tokens + kBlockTokens - 1) / kBlockTokens;
  layout_ = {1, 1, config.head_dim, DType::kF32, blocks};
  blocks_.resize(blocks);
  std::iota(blocks_.begin(), blocks_.end(), 0u);
  in_order_.resize(max_tokens);
  std::iota(in_order_.begin(), in_order_.end(), 0u);
}

SelectionAttender::~SelectionAttender() {
  if (moved_) backend_->Free(moved_);
}

RowTable SelectionAttender::Move(const HeadSelection& selection, uint32_t position,
                                 const RowTable& rows) {
  if (!moved_) moved_ = backend_->Allocate(layout_.pool_bytes());
  CHECK(moved_ != nullptr);
  const RowTable moved = {moved_, blocks_.data(), &layout_};
  for (uint32_t i = 0; i < selection.rows.size(); ++i) {
    const uint32_t row = selection.rows[i];
    auto* to = reinterpret_cast<float*>(moved.Row(0, i));
    const std::byte* from = rows.Row(0, row);
    for (uint32_t c = 0; c < 2 * config_.head_dim; ++c) {
      to[c] = LoadValue(from, c, rows.layout->dtype);
    }
    const int64_t delta = int64_t{position} - selection.distances[i] - row;
    if (delta != 0) Turn(to, config_.head_dim, delta, inverse_frequency_);
  }
  return moved;
}

void SelectionAttender::Attend(const HeadSelection& selection, uint32_t kv_head, uint32_t position,
                               const RowTable& rows, const float* q,
                               std::span<const double> mean_value, float* out) {
  const auto count = static_cast<uint32_t>(selection.rows.size());
  CHECK(count > 0 && selection.rows.back() <= position);
  const uint32_t group = config_.group();
  AttendArgs::Item item = {.span = {0, 1, position},
                           .rows = HeadRows(rows, kv_head),
                           .selection = selection.rows.data(),
                           .count = count};
  if (!selection.distances.empty()) {
    item.rows = Move(selection, position, item.rows);
    item.selection = in_order_.data();
  }
  backend_->Attend({.q = q,
                    .out = out,
                    .kv_heads = 1,
                    .group = group,
                    .head_dim = config_.head_dim,
                    .scale = config_.attention_scale(),
                    .selection_stride = count,
                    .items = {&item, 1}});
  for (size_t h = 0; h < selection.share.size(); ++h) {
    for (uint32_t c = 0; c < config_.head_dim; ++c) {
      float& x = out[h * config_.head_dim + c];
      x = selection.share[h] * x + (1 - selection.share[h]) * static_cast<float>(mean_value[c]);
    }
  }
}

}  // namespace sparsekv
