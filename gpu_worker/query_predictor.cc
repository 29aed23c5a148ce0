#include "gpu_worker/query_predictor.h"

#include <cstring>
#include <numeric>

#include "base/check.h"

namespace sparsekv {

uint32_t QueryPredictor::Width(const ModelConfig& config, const ChannelConfig& channels) {
  return std::min(2 * channels.channels, config.head_dim);
}

namespace {
constexpr size_t kAlign = 256;
size_t Aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }
}  // namespace

size_t QueryPredictor::Bytes(const ModelConfig& config, const ChannelConfig& channels) {
  const size_t width = Width(config, channels);
  // In the widest type of a weight: the plan does not know the checkpoint's.
  return config.layers * (Aligned(config.heads * width * config.hidden_size * sizeof(float)) +
                          Aligned(config.kv_heads * width * sizeof(uint16_t)));
}

QueryPredictor::QueryPredictor(const ModelConfig& config, const ChannelConfig& channels,
                               const Weights& files, const Weights& weights, Backend* backend,
                               std::byte* memory)
    : config_(config),
      weights_(weights),
      backend_(backend),
      width_(Width(config, channels)),
      channels_(config.layers),
      sliced_(config.layers) {
  const size_t layer_bytes = Bytes(config, channels) / config.layers;
  for (uint32_t layer = 0; layer < config.layers; ++layer, memory += layer_bytes) {
    const std::vector<uint16_t> chosen = Chosen(layer, channels);
    const size_t list_bytes = chosen.size() * sizeof(uint16_t);
    backend_->Upload(memory, chosen.data(), list_bytes);
    channels_[layer] = reinterpret_cast<const uint16_t*>(memory);
    Slice(layer, chosen, files.layers[layer].wq, memory + Aligned(list_bytes));
  }
}

std::vector<uint16_t> QueryPredictor::Chosen(uint32_t layer, const ChannelConfig& channels) const {
  const uint32_t r = channels.channels, half = config_.head_dim / 2;
  std::vector<uint16_t> chosen(size_t{config_.kv_heads} * width_);
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
  return chosen;
}

void QueryPredictor::Slice(uint32_t layer, const std::vector<uint16_t>& chosen,
                           const WeightView& wq, std::byte* memory) {
  const uint32_t group = config_.heads / config_.kv_heads;
  const size_t row_bytes = size_t{config_.hidden_size} * SizeOf(wq.dtype);
  std::vector<std::byte> rows(size_t{config_.heads} * width_ * row_bytes);
  std::byte* to = rows.data();
  for (uint32_t head = 0; head < config_.heads; ++head) {
    const uint16_t* list = chosen.data() + size_t{head / group} * width_;
    for (uint32_t j = 0; j < width_; ++j, to += row_bytes) {
      const size_t row = size_t{head} * config_.head_dim + list[j];
      std::memcpy(to, static_cast<const std::byte*>(wq.data) + row * row_bytes, row_bytes);
    }
  }
  backend_->Upload(memory, rows.data(), rows.size());
  sliced_[layer] = {.data = memory,
                    .dtype = wq.dtype,
                    .rows = config_.heads * width_,
                    .cols = config_.hidden_size};
}

void QueryPredictor::Predict(uint32_t layer, std::span<const uint32_t> positions,
                             std::span<const float> inverse_frequency,
                             const Scratch::Ahead& ahead) const {
  const auto tokens = static_cast<uint32_t>(positions.size());
  const ProjectArgs::Output output = {sliced_[layer], ahead.compact};
  backend_->Project({.x = ahead.normed,
                     .tokens = tokens,
                     .norm = weights_.layers[layer].attention_norm,
                     .epsilon = config_.rms_norm_eps,
                     .normed = ahead.normed,
                     .outputs = {&output, 1}});
  backend_->ExpandQuery({.compact = ahead.compact,
                         .channels = channels_[layer],
                         .tokens = tokens,
                         .kv_heads = config_.kv_heads,
                         .group = config_.heads / config_.kv_heads,
                         .head_dim = config_.head_dim,
                         .width = width_,
                         .q = ahead.q});
  backend_->Rope({.x = ahead.q,
                  .positions = positions,
                  .inverse_frequency = inverse_frequency,
                  .heads = config_.heads,
                  .head_dim = config_.head_dim});
}

}  // namespace sparsekv
