#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string_view>

#include "absl/status/status.h"

namespace sparsekv {

struct ModelConfig;
class JsonFields;

// The architectures that are computed exactly as transformers computes them.
enum class Family : uint8_t { kLlama, kMistral, kMixtral, kPhi3, kQwen2, kQwen3, kQwen3Moe };

// What config.json leaves out and where families differ.
struct FamilyTraits {
  Family family = Family::kLlama;
  const char* model_type = "";
  const char* architecture = "";
  uint32_t max_context = 2048;  // max_position_embeddings when it is absent
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000.0;
  uint32_t head_dim = 0;          // when absent; 0 = hidden_size / num_attention_heads
  bool kv_heads_default = false;  // num_key_value_heads may be absent: as many as query heads
};

// The traits of model_type and architectures; refuses, and returns Llama's, where there are none.
const FamilyTraits& ReadFamily(JsonFields& fields);

// What the layers of this family are made of: biases, norms, windows, experts.
// REQUIRES: the sizes of `config` are read.
void ReadStructure(const nlohmann::json& json, JsonFields& fields, ModelConfig& config);

}  // namespace sparsekv
