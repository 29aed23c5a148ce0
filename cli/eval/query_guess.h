#pragma once

#include <memory>

#include "gpu_worker/device.h"
#include "gpu_worker/query_predictor.h"

namespace sparsekv {

// A layer's queries as the input of the layer before gives them, published way: the worker's own
// predictor, for one token. One thread.
class QueryGuess {
 public:
  // As many label channels as anybody asks for. All outlive it.
  QueryGuess(const ModelFiles& files, const ChannelConfig& channels, Backend* backend);
  ~QueryGuess();

  // From the residual stream that enters layer - 1. [heads, head_dim], zero but for the channels,
  // valid until the next call.
  const float* Of(uint32_t layer, const float* hidden, uint32_t position);

 private:
  const ModelConfig& config_;
  Backend* const backend_;
  const std::vector<float> inverse_frequency_;
  std::byte* memory_;
  std::unique_ptr<QueryPredictor> predictor_;
  Scratch::Ahead ahead_;
};

}  // namespace sparsekv
