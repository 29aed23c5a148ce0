#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu_worker/checkpoint/quantization_config.h"
#include "gpu_worker/checkpoint/safetensors.h"
#include "kernels/packed_matrix.h"

namespace sparsekv {

struct FoundTensor {
  const SafetensorsEntry* entry = nullptr;  // null: there is no such tensor
  std::string file;                         // that holds it, or that should
};
using TensorLookup = std::function<FoundTensor(const std::string& name)>;

// The tensor, if it is there and of the right type and shape; else an error of one line:
// 'FILE: tensor "NAME" is missing', or what it has and what was expected.
absl::StatusOr<const SafetensorsEntry*> ExpectTensor(const TensorLookup& lookup,
                                                     const std::string& name,
                                                     const std::vector<std::string_view>& dtypes,
                                                     const std::vector<uint64_t>& shape);

// A matrix of integer codes as a checkpoint stores it, read value by value. Constant; it reads the
// files that the lookup found.
class CodeLayout {
 public:
  virtual ~CodeLayout() = default;

  // `base`: the module, without ".weight". Every tensor that the layout needs is there and of the
  // right type and shape, or the error of one line says which is not.
  static absl::StatusOr<std::unique_ptr<CodeLayout>> Open(const QuantizationConfig& config,
                                                          const std::string& base, uint32_t rows,
                                                          uint32_t cols,
                                                          const TensorLookup& lookup);

  const PackedMatrix::Shape& shape() const { return shape_; }
  const std::vector<uint32_t>& order() const { return order_; }  // empty: the inputs' own

  // Codes of 16 outputs from `first` on, [inputs in order][16]; anything beyond the last output.
  virtual void Codes(uint32_t first, uint8_t* codes) const = 0;
  virtual uint8_t Zero(uint32_t output, uint32_t group) const = 0;
  virtual size_t ScaleIndex(uint32_t output, uint32_t group) const = 0;
  const std::byte* Scale(uint32_t output, uint32_t group) const {
    return scales_ + ScaleIndex(output, group) * SizeOf(shape_.scale_type);
  }

 protected:
  uint32_t bits() const { return shape_.encoding == Encoding::kInt4 ? 4 : 8; }
  uint32_t per_word() const { return 32 / bits(); }
  uint32_t mask() const { return (1u << bits()) - 1; }
  uint32_t groups() const { return CeilDivide(shape_.cols, shape_.group); }
  uint32_t Input(uint32_t place) const { return order_.empty() ? place : order_[place]; }

  PackedMatrix::Shape shape_;
  std::vector<uint32_t> order_;
  const std::byte* scales_ = nullptr;
};

}  // namespace sparsekv
