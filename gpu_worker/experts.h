#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "gpu_worker/checkpoint/layer_weights.h"
#include "gpu_worker/checkpoint/model_config.h"
#include "gpu_worker/scratch.h"
#include "kernels/backend.h"

namespace sparsekv {

// The experts that one token takes, by rising index, and what their outputs are multiplied by.
struct ExpertChoice {
  uint32_t expert = 0;
  float weight = 0;
};

// From the router's logits of one token, [experts.count]: softmax in float32, the `per_token`
// highest probabilities, ties by the lower index, normalised where the model says so.
void RouteToken(const ExpertsConfig& experts, std::span<const float> logits,
                std::vector<ExpertChoice>& chosen);

// hidden += sum over a token's experts of weight * expert(norm(hidden)), by rising expert. An
// expert that no token of the pass takes is not read. What is computed for a token depends on it
// alone: the products keep the invariance rule, and its sum has an order of its own. For backends
// whose memory is the host's, which routes.
class Experts {
 public:
  Experts(const ModelConfig& config, Backend* backend, const Scratch& scratch)
      : config_(config), backend_(*backend), scratch_(scratch) {}

  void Add(const LayerWeights& layer, float* hidden, uint32_t tokens);

  // Tests: how many experts the last call of Add read.
  uint32_t experts_read() const { return experts_read_; }

 private:
  struct Place {
    uint32_t token = 0;
    float weight = 0;
  };

  void Route(const LayerWeights& layer, uint32_t tokens);
  void AddExpert(const ExpertWeights& expert, std::span<const Place> places);

  const ModelConfig& config_;
  Backend& backend_;
  const Scratch scratch_;
  std::vector<std::vector<Place>> places_;  // [experts], tokens rising
  std::vector<ExpertChoice> chosen_;
  uint32_t experts_read_ = 0;
};

}  // namespace sparsekv
