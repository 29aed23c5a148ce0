#include "gpu_worker/query_predictor.h"

#include <cstring>
#include <numeric>

#include "base/check.h"

namespace sparsekv {

uint32_t QueryPredictor::Width(const ModelConfig& config, const ChannelConfig& channels) {
  return std::min(2 * channels.channels, config.head_dim);
}

size_t QueryPredictor::Bytes(const ModelConfig& config, const ChannelConfig& channels) {
  // In the widest type of a weight: the plan does not know the checkpoint's.
  return size_t{config.layers} * config.heads * Width(config, channels) * config.hidden_size *
         sizeof(float);
}

QueryPredictor::QueryPredictor(const ModelConfig& config, const ChannelConfig& channels,
                               const Weights& weights, Backend* backend, std::byte* memory)
    : config_(config),
      weights_(weights),
      backend_(backend),
      width_(Width(config, channels)),
      channels_(config.layers),
      sliced_(config.layers) {
  const size_t layer_bytes = Bytes(config, channels) / config.layers;
  for (uint32_t layer = 0; layer < config.layers; ++layer) {
    Slice(layer, channels, weights.layers[layer].wq, memory + layer * layer_bytes);
  }
}

void QueryPredictor::Slice(uint32_t layer, const ChannelConfig& channels, const WeightView& wq,
                           std::byte* memory) {
  const uint32_t r = channels.channels, half = config_.head_dim / 2;
  std::vector<uint16_t>& chosen = channels_[layer];
  chosen.resize(size_t{config_.kv_heads} * width_);
  for (uint32_t kv_head = 0; kv_head < config_.kv_heads; ++kv_head) {
    uint16_t* list = chosen.data() + size_t{kv_head} * width_;
    if (width_ == config_.head_dim) {
      std::iota(list, list + width_, uint16_t{0});
      continue;
    }
    const uint16_t* labels = channels.Layer(layer) + size_t{kv_head} * r;
    for (uint32_t c = 0; c < r; ++c) {
      list[c] = labels[c];
      list[r + c] = static_cast<uint16_t>(labels[c] < half ? labels[c] + half : labels[c] - half);
    }
  }
  const uint32_t group = config_.heads / config_.kv_heads;
  const size_t row_bytes = size_t{config_.hidden_size} * SizeOf(wq.dtype);
  std::byte* to = memory;
  for (uint32_t head = 0; head < config_.heads; ++head) {
    const uint16_t* list = chosen.data() + size_t{head / group} * width_;
    for (uint32_t j = 0; j < width_; ++j, to += row_bytes) {
      const size_t row = size_t{head} * config_.head_dim + list[j];
      std::memcpy(to, static_cast<const std::byte*>(wq.data) + row * row_bytes, row_bytes);
    }
  }
  sliced_[layer] = {.data = memory,
                    .dtype = wq.dtype,
                    .rows = config_.heads * width_,
                    .cols = config_.hidden_size};
}

void QueryPredictor::Predict(uint32_t layer, std::span<const uint32_t> positions,
                             std::span<const float> inverse_frequency,
                             const Scratch& scratch) const {
  const auto tokens = static_cast<uint32_t>(positions.size());
  backend_->RmsNorm({.x = scratch.normed,
                     .tokens = tokens,
                     .weight = weights_.layers[layer].attention_norm,
                     .epsilon = config_.rms_norm_eps,
                     .out = scratch.normed});
  backend_->Linear(
      {.x = scratch.normed, .tokens = tokens, .weight = sliced_[layer], .y = scratch.attended});
  backend_->ExpandQuery({.compact = scratch.attended,
                         .channels = channels_[layer].data(),
                         .tokens = tokens,
                         .kv_heads = config_.kv_heads,
                         .group = config_.heads / config_.kv_heads,
                         .head_dim = config_.head_dim,
                         .width = width_,
                         .q = scratch.q});
  backend_->Rope({.x = scratch.q,
                  .positions = positions,
                  .inverse_frequency = inverse_frequency,
                  .heads = config_.heads,
                  .head_dim = config_.head_dim});
}

}  // namespace sparsekv
