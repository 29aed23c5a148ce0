#pragma once

#include <cstdint>
#include <vector>

#include "gpu_worker/model.h"

namespace sparsekv {

// A long prompt of an offloaded sequence, computed layer by layer: only one layer's rows are ever
// on the device, in its prefill buffer, and none is read back from the host. The residual stream of
// the whole prompt waits in memory between layers. Work is done in units, so that others
// decode in between. Belongs to the device thread.
class LayerwisePrefill {
 public:
  // `chunk_tokens`: tokens of one pass, a multiple of kPrefillAlign. `hidden`: device memory for
  // [prompt_tokens, hidden_size]; null where that is the host's, which then finds it itself.
  LayerwisePrefill(Model* model, uint32_t prompt_tokens, uint32_t chunk_tokens, float* hidden);

  // Computes at most `token_layers` (token, layer) pairs more, at least one chunk, as a part of the
  // model's step; returns how many. `prompt` is the whole prompt as one item, the same at each
  // call.
  uint64_t Run(const StepItem& prompt, uint64_t token_layers);

  bool done() const { return layer_ == model_->config().layers; }
  // Once done: the place of the prompt's last token in the last pass, for Model::Logits.
  uint32_t last_token() const { return last_token_; }

  // Host memory for a prompt.
  static size_t HostBytes(const ModelConfig& config, uint32_t prompt_tokens) {
    return size_t{prompt_tokens} * config.hidden_size * sizeof(float);
  }

 private:
  Model* const model_;
  const uint32_t tokens_;
  const uint32_t chunk_;
  std::vector<float> own_;
  float* hidden_;  // [tokens_, hidden_size]
  uint32_t layer_ = 0;
  uint32_t position_ = 0;  // of the next token of the layer
  uint32_t last_token_ = 0;
};

}  // namespace sparsekv
