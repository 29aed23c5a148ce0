#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "gpu_worker/channel_config.h"
#include "gpu_worker/checkpoint/model_config.h"
#include "gpu_worker/checkpoint/weights.h"
#include "gpu_worker/scratch.h"
#include "kernels/backend.h"

namespace sparsekv {

// Guesses a layer's queries from a guess of its input, on the label channels only:
// q' = Wq . norm(h) + bias with the layer's own norm, and of Wq only the rows that the label
// channels and their rotary partners need. Those rows are copied together once, at start. Where q
// is normalised that takes the whole head: then Wq is used whole, as it lies. Belongs to the device
// thread; what it is made of outlives it.
class QueryPredictor {
 public:
  // Device memory for the sliced matrices, and for the drift of a batch's sequences.
  static size_t Bytes(const ModelConfig& config, const ChannelConfig& channels);
  static size_t DriftBytes(const ModelConfig& config, uint32_t max_batch) {
    return size_t{max_batch} * config.layers * config.hidden_size * sizeof(float);
  }

  // `memory` holds Bytes(...). `files` are the weights as the host reads them, `weights` as the
  // device does.
  QueryPredictor(const ModelConfig& config, const ChannelConfig& channels, const Weights& files,
                 const Weights& weights, Backend* backend, std::byte* memory);

  // From the guessed input of `layer` in ahead.normed, [tokens, hidden_size], to its queries before
  // rotation in ahead.q, zero but for the channels; uses ahead.compact.
  void Project(uint32_t layer, uint32_t tokens, const Scratch::Ahead& ahead) const;

 private:
  // Channels of a KV head: labels and partners, or all of them where those would be as many.
  static uint32_t Width(const ModelConfig& config, const ChannelConfig& channels);
  // The channels that are computed, [kv_heads, width].
  std::vector<uint16_t> Chosen(uint32_t layer, const ChannelConfig& channels) const;
  // Copies to `memory` the rows of `matrix` (or a bias' values) that are computed.
  WeightView Slice(const std::vector<uint16_t>& chosen, const WeightView& matrix,
                   std::byte* memory) const;

  const ModelConfig& config_;
  const Weights& weights_;
  Backend* const backend_;
  const uint32_t width_;
  std::vector<const uint16_t*> channels_;  // [layers], [kv_heads, width] on the device
  std::vector<WeightView> sliced_;         // [layers], [heads * width, hidden_size]
  std::vector<WeightView> bias_;           // [layers], [1, heads * width]; without: no data
};

}  // namespace sparsekv
