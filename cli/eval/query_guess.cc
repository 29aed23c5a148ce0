#include "cli/eval/query_guess.h"

#include <algorithm>

#include "base/check.h"

namespace sparsekv {

QueryGuess::QueryGuess(const ModelFiles& files, const ChannelConfig& channels, Backend* backend)
    : config_(files.config),
      backend_(backend),
      inverse_frequency_(files.config.InverseFrequency()),
      memory_(backend->Allocate(QueryPredictor::Bytes(files.config, channels))) {
  CHECK(memory_ != nullptr);
  predictor_ = std::make_unique<QueryPredictor>(config_, channels, *files.weights, *files.weights,
                                                backend, memory_);
  const auto floats = [&](size_t count) {
    return reinterpret_cast<float*>(backend_->Allocate(count * sizeof(float)));
  };
  const size_t width = size_t{config_.heads} * config_.head_dim;
  ahead_.normed = floats(config_.hidden_size);
  ahead_.q = floats(width);
  ahead_.compact = floats(width);
}

QueryGuess::~QueryGuess() {
  for (float* buffer : {ahead_.normed, ahead_.q, ahead_.compact}) {
    backend_->Free(reinterpret_cast<std::byte*>(buffer));
  }
  backend_->Free(memory_);
}

const float* QueryGuess::Of(uint32_t layer, const float* hidden, uint32_t position) {
  std::copy_n(hidden, config_.hidden_size, ahead_.normed);
  predictor_->Project(layer, 1, ahead_);
  backend_->Rope({.x = ahead_.q,
                  .positions = {&position, 1},
                  .inverse_frequency = inverse_frequency_,
                  .heads = config_.heads,
                  .head_dim = config_.head_dim});
  return ahead_.q;
}

}  // namespace sparsekv
