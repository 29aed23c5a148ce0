#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace sparsekv {

// How rotary frequencies are stretched beyond the context a model was first trained at. Dynamic NTK
// is kNone: it changes nothing up to max_position_embeddings, and nothing beyond that is served.
struct RopeScaling {
  enum class Kind : uint8_t { kNone, kLlama3, kLinear, kYarn, kLongRope };
  Kind kind = Kind::kNone;
  double factor = 1.0;
  double low_freq_factor = 1.0;   // kLlama3
  double high_freq_factor = 1.0;  // kLlama3
  uint32_t original_context = 0;  // tokens; 0: of no use to this kind
  double beta_fast = 32.0;        // kYarn, with the next
  double beta_slow = 1.0;
  bool truncate = true;
  // kLongRope: [head_dim / 2] divisors, of sequences up to original_context and of longer ones.
  std::vector<double> short_factor, long_factor;
  // Cosines and sines are multiplied by it, so scores by its square.
  double attention_factor = 1.0;
};

// The rotary embedding of a checkpoint.
struct RopeConfig {
  double theta = 10000.0;
  RopeScaling scaling;
  uint32_t context = 0;  // tokens that the settings are meant for, where they say so; else 0

  // [head_dim / 2] rotary frequencies, in float32 arithmetic step by step as the checkpoints were
  // trained with (transformers' ROPE_INIT_FUNCTIONS). `long_rope`: of a sequence that is longer
  // than scaling.original_context; says nothing but for kLongRope.
  std::vector<float> InverseFrequency(uint32_t head_dim, bool long_rope) const;

  // From the fields of config.json: rope_theta, and rope_scaling (transformers 4) or
  // rope_parameters (5). `theta` and `original` are the family's defaults, 0 = max_context; `su`:
  // the family's older names "su" and "yarn" mean longrope.
  struct Defaults {
    double theta = 10000.0;
    uint32_t original = 0;
    bool su = false;
  };
  static absl::StatusOr<RopeConfig> Read(const nlohmann::json& config, const std::string& file,
                                         const Defaults& defaults, uint32_t head_dim,
                                         uint32_t max_context);
};

}  // namespace sparsekv
