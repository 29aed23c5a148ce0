#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"

namespace sparsekv {

// What config.json says about how matrices are stored (quantization_config). Which of them are, the
// tensors themselves say: a matrix that the config leaves out is there as plain floats.
struct QuantizationConfig {
  enum class Method : uint8_t {
    kNone,
    kGptq,        // qweight, qzeros, scales, g_idx
    kAwq,         // qweight, qzeros, scales; "gemm"
    kFp8,         // weight in F8_E4M3, weight_scale_inv or weight_scale
    kCompressed,  // compressed-tensors: weight or weight_packed, weight_scale
  };
  Method method = Method::kNone;
  std::string name;      // quant_method, as the file has it
  std::string file;      // that it was read from
  uint32_t bits = 0;     // of an integer, 4 or 8; 0: float8
  uint32_t group = 0;    // inputs that share a scale; 0: all of them
  bool ordered = false;  // gptq: inputs may be in another order, so g_idx must be there
  // gptq: zero points are stored less one (every version of the format but "gptq_v2").
  bool zeros_less_one = false;
  bool packed = false;  // compressed-tensors: weight_packed, not weight
  // float8: outputs and inputs of a block that shares a scale; 0: no blocks, a scale for the matrix
  // or for each of its rows.
  uint32_t block_rows = 0, block_cols = 0;

  bool any() const { return method != Method::kNone; }

  // Calls take(number) for everything that decides what stored bytes mean.
  template <typename Take>
  void Hash(const Take& take) const {
    for (uint32_t number : {uint32_t{static_cast<uint8_t>(method)}, bits, group,
                            uint32_t{zeros_less_one}, block_rows, block_cols}) {
      take(uint64_t{number});
    }
  }

  // `file` is for errors, which are one line: file, field, value, and what would be supported. What
  // is neither known to say nothing about the weights nor supported is refused.
  static absl::StatusOr<QuantizationConfig> Read(const nlohmann::json& object,
                                                 const std::string& file);
};

}  // namespace sparsekv
