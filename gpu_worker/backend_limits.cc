#include "gpu_worker/backend_limits.h"

#include <algorithm>

#include "base/concat.h"

namespace sparsekv {

std::string WhyNotOnCuda(const ModelConfig& config) {
  const auto refused = [](const auto&... what) {
    return Concat("config.json: ", what..., " is not in this version of backend cuda");
  };
  if (!config.windows.empty()) {
    return refused("sliding_window ", *std::ranges::max_element(config.windows));
  }
  if (config.experts.count > 0) {
    return refused("num_experts_per_tok ", config.experts.per_token);
  }
  const std::string family = Concat("architectures [\"", config.architecture(), "\"]");
  if (config.qk_norm) return refused(family, ", with norms of q and k,");
  if (config.o_bias) return refused("attention_bias true");
  if (config.qkv_bias) return refused(family, ", with biases of q, k and v,");
  if (config.mlp_bias) return refused("mlp_bias true");
  return "";
}

// Selections of one step would differ in length from layer to layer, by what their scores say: a
// device's graph has the counts as data of the step, which the host writes before it, and neither
// RowMass nor CountScores is there.
std::string WhyNoRecallTarget(const Backend& backend) {
  if (backend.host_memory()) return "";
  return "recall_target: is not in this version of backend cuda";
}

}  // namespace sparsekv
