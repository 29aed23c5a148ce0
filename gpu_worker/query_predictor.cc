#include "gpu_worker/query_predictor.h"

#include <cstring>
#include <numeric>
#include <vector>

#include "base/check.h"
#include "kernels/half.h"

namespace sparsekv {

uint32_t QueryPredictor::Width(const ModelConfig& config, const ChannelConfig& channels) {
  return std::min(2 * channels.channels, config.head_dim);
}

namespace {
constexpr size_t kAlign = 256;
size_t Aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }
}  // namespace

size_t QueryPredictor::Bytes(const ModelConfig& config, const ChannelConfig& channels) {
  if (config.qk_norm) return 0;
  const size_t width = Width(config, channels);
  // In the widest type of a weight: the plan does not know the checkpoint's.
  const size_t bias = config.qkv_bias ? Aligned(config.heads * width * sizeof(float)) : 0;
  return config.layers * (Aligned(config.heads * width * config.hidden_size * sizeof(float)) +
                          Aligned(config.kv_heads * width * sizeof(uint16_t)) + bias);
}

QueryPredictor::QueryPredictor(const ModelConfig& config, const ChannelConfig& channels,
                               const Weights& files, const Weights& weights, Backend* backend,
                               std::byte* memory)
    : config_(config),
      weights_(weights),
      backend_(backend),
      width_(Width(config, channels)),
      channels_(config.layers),
      sliced_(config.layers),
      bias_(config.layers) {
  if (config.qk_norm) return;
  const size_t layer_bytes = Bytes(config, channels) / config.layers;
  for (uint32_t layer = 0; layer < config.layers; ++layer, memory += layer_bytes) {
    const std::vector<uint16_t> chosen = Chosen(layer, channels);
    const size_t list_bytes = chosen.size() * sizeof(uint16_t);
    backend_->Upload(memory, chosen.data(), list_bytes);
    channels_[layer] = reinterpret_cast<const uint16_t*>(memory);
    std::byte* next = memory + Aligned(list_bytes);
    const LayerWeights& from = files.layers[layer];
    sliced_[layer] = Slice(chosen, from.wq, next);
    next += Aligned(size_t{config.heads} * width_ * config.hidden_size * sizeof(float));
    if (config.qkv_bias) bias_[layer] = Slice(chosen, from.bq, next);
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

// Rows of codes become bfloat16: what they predict is a guess anyway.
WeightView QueryPredictor::Slice(const std::vector<uint16_t>& chosen, const WeightView& matrix,
                                 std::byte* memory) const {
  const uint32_t group = config_.heads / config_.kv_heads;
  const bool vector = matrix.rows == 1;  // a bias: its values are rows of one
  const uint32_t cols = vector ? 1 : matrix.cols;
  const DType dtype = matrix.plain() ? matrix.dtype : DType::kBF16;
  const size_t row_bytes = size_t{cols} * SizeOf(dtype);
  std::vector<std::byte> rows(size_t{config_.heads} * width_ * row_bytes);
  std::vector<float> floats(config_.hidden_size);
  std::byte* to = rows.data();
  for (uint32_t head = 0; head < config_.heads; ++head) {
    const uint16_t* list = chosen.data() + size_t{head / group} * width_;
    for (uint32_t j = 0; j < width_; ++j, to += row_bytes) {
      const uint32_t row = head * config_.head_dim + list[j];
      if (matrix.plain()) {
        std::memcpy(to, static_cast<const std::byte*>(matrix.data) + row * row_bytes, row_bytes);
        continue;
      }
      DecodeRow(matrix, row, floats.data());
      for (uint32_t i = 0; i < cols; ++i) StoreValue(to, i, dtype, floats[i]);
    }
  }
  backend_->Upload(memory, rows.data(), rows.size());
  const uint32_t count = config_.heads * width_;
  return {
      .data = memory, .dtype = dtype, .rows = vector ? 1 : count, .cols = vector ? count : cols};
}

void QueryPredictor::Project(uint32_t layer, uint32_t tokens, const Scratch::Ahead& ahead) const {
  const LayerWeights& w = weights_.layers[layer];
  const bool whole = config_.qk_norm;
  const ProjectArgs::Output output = {whole ? w.wq : sliced_[layer],
                                      whole ? ahead.q : ahead.compact};
  backend_->Project({.x = ahead.normed,
                     .tokens = tokens,
                     .norm = w.attention_norm,
                     .epsilon = config_.rms_norm_eps,
                     .normed = ahead.normed,
                     .outputs = {&output, 1}});
  if (config_.qkv_bias) {
    backend_->AddBias({.x = output.y, .tokens = tokens, .bias = whole ? w.bq : bias_[layer]});
  }
  if (whole) {
    backend_->RmsNorm({.x = ahead.q,
                       .tokens = tokens * config_.heads,
                       .weight = w.q_norm,
                       .epsilon = config_.rms_norm_eps,
                       .out = ahead.q});
    return;
  }
  backend_->ExpandQuery({.compact = ahead.compact,
                         .channels = channels_[layer],
                         .tokens = tokens,
                         .kv_heads = config_.kv_heads,
                         .group = config_.heads / config_.kv_heads,
                         .head_dim = config_.head_dim,
                         .width = width_,
                         .q = ahead.q});
}

}  // namespace sparsekv
