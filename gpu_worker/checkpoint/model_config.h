#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/dtype.h"

namespace sparsekv {

// How rotary frequencies are stretched beyond the context a model was first trained at.
struct RopeScaling {
  enum class Kind : uint8_t { kNone, kLlama3 };
  Kind kind = Kind::kNone;
  double factor = 1.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 1.0;
  uint32_t original_context = 0;  // tokens
};

// The numbers of a Llama-architecture model, as its config.json gives them. What this version
// cannot compute exactly as the checkpoint means it is refused by Load, never approximated.
struct ModelConfig {
  uint32_t vocab_size = 0;
  uint32_t hidden_size = 0;
  uint32_t intermediate_size = 0;
  uint32_t layers = 0;
  uint32_t heads = 0;        // query heads
  uint32_t kv_heads = 0;     // divides heads
  uint32_t head_dim = 0;     // 8..kMaxHeadDim, a multiple of 8
  uint32_t max_context = 0;  // tokens (max_position_embeddings)
  float rms_norm_eps = 0;
  double rope_theta = 0;
  RopeScaling rope_scaling;
  bool tie_embeddings = false;
  std::vector<uint32_t> eos_ids;  // ascending; empty: only length and stop strings end a sequence
  std::optional<uint32_t> bos_id;
  // The type of token rows: the checkpoint's own. torch_dtype of config.json (absent: float32)
  // until LoadCheckpoint (weights.h) sets it from the weights themselves.
  DType row_dtype = DType::kF32;

  uint32_t group() const { return heads / kv_heads; }  // query heads per KV head

  // [head_dim / 2] rotary frequencies, in float32 arithmetic step by step as the checkpoints were
  // trained with (transformers' ROPE_INIT_FUNCTIONS).
  std::vector<float> InverseFrequency() const;

  // Reads MODEL_DIR/config.json, and the end-of-sequence ids of generation_config.json when that is
  // there. Errors are one line: file, field, value, and what would be supported.
  static absl::StatusOr<ModelConfig> Load(const std::string& model_dir);
};

}  // namespace sparsekv
