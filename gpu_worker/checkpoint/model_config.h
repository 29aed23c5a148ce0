#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/dtype.h"
#include "gpu_worker/checkpoint/family.h"
#include "gpu_worker/checkpoint/quantization_config.h"
#include "gpu_worker/checkpoint/rope_scaling.h"

namespace sparsekv {

inline constexpr uint32_t kMaxIntermediate = 1 << 20;

// A mixture of experts in the place of a layer's MLP. Every token takes the `per_token` experts of
// the highest router probability.
struct ExpertsConfig {
  uint32_t count = 0;  // 0 = none
  uint32_t per_token = 0;
  uint32_t intermediate_size = 0;
  bool normalise = false;    // the chosen experts' probabilities are divided by their sum
  std::vector<bool> layers;  // [layers]: whether a layer has experts
};

// The numbers of a model, as its config.json gives them. What this version
// cannot compute exactly as the checkpoint means it is refused by Load, never approximated.
struct ModelConfig {
  Family family = Family::kLlama;
  uint32_t vocab_size = 0;
  uint32_t hidden_size = 0;
  uint32_t intermediate_size = 0;
  uint32_t layers = 0;
  uint32_t heads = 0;        // query heads
  uint32_t kv_heads = 0;     // divides heads
  uint32_t head_dim = 0;     // 8..kMaxHeadDim, a multiple of 8
  uint32_t max_context = 0;  // tokens: max_position_embeddings, or what its rope settings mean
  float rms_norm_eps = 0;
  double rope_theta = 0;
  RopeScaling rope_scaling;
  bool tie_embeddings = false;
  // What the layers have beside Llama's: family.h.
  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  bool qk_norm = false;            // every head of q and k is normalised before rotation
  bool fused_projections = false;  // q, k, v lie in one tensor, and so do gate and up
  std::vector<uint32_t> windows;   // [layers], 0 = none, window.h; empty: no layer has one
  ExpertsConfig experts;
  std::vector<uint32_t> eos_ids;  // ascending; empty: only length and stop strings end a sequence
  std::optional<uint32_t> bos_id;
  // The type of token rows: the checkpoint's own. torch_dtype of config.json (absent: float32)
  // until LoadCheckpoint (weights.h) sets it from the weights themselves.
  DType row_dtype = DType::kF32;
  QuantizationConfig quantization;

  uint32_t group() const { return heads / kv_heads; }  // query heads per KV head

  uint32_t window(uint32_t layer) const { return windows.empty() ? 0 : windows[layer]; }
  // Of what no layer attends more; 0 = some layer attends everything.
  uint32_t widest_window() const;
  bool has_experts(uint32_t layer) const { return experts.count > 0 && experts.layers[layer]; }
  const char* architecture() const;

  // Whether a sequence of so many tokens in all rotates by the long factors. transformers looks at
  // the tokens of each call and begins anew when they outgrow the original context; here a sequence
  // that may come to more tokens takes the long factors from its start.
  bool long_rope(uint32_t tokens) const {
    return rope_scaling.kind == RopeScaling::Kind::kLongRope &&
           tokens > rope_scaling.original_context;
  }
  // [head_dim / 2], RopeConfig::InverseFrequency.
  std::vector<float> InverseFrequency(bool long_rope = false) const;
  // What scores are multiplied by before their softmax.
  float attention_scale() const;

  // Reads MODEL_DIR/config.json, and the end-of-sequence ids of generation_config.json when that is
  // there. Errors are one line: file, field, value, and what would be supported.
  static absl::StatusOr<ModelConfig> Load(const std::string& model_dir);
};

}  // namespace sparsekv
