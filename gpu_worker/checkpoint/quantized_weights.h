#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gpu_worker/checkpoint/code_layout.h"
#include "gpu_worker/checkpoint/quantization_config.h"
#include "gpu_worker/checkpoint/safetensors.h"
#include "kernels/packed_matrix.h"

namespace sparsekv {

// The matrices of a checkpoint that are stored as codes. float8 is used where it lies in the mapped
// files; integers are copied once, in the layout that products read (kernels/encoding.h), which
// takes as much memory as they take in the file, in every process that computes.
//
// Bind every matrix first, then Pack once. Constant afterwards. Views die with this object, or with
// the files.
class QuantizedWeights {
 public:
  QuantizedWeights(QuantizationConfig config, TensorLookup lookup);
  ~QuantizedWeights();

  // Whether "X.weight" is stored as codes. Embeddings never are.
  bool Holds(const std::string& tensor) const;
  // Sets everything of the view but `data` and other memory of integers, which Pack sets. The error
  // names the file, the tensor and what is wrong. Old exports have biases of zeros beside every
  // matrix; another one is an error, unless the caller binds it (`has_bias`).
  absl::Status Bind(const std::string& tensor, uint32_t rows, uint32_t cols, bool has_bias,
                    WeightView* view);
  // Makes the products' copies, on all cores, and looks at every float8 and scale once. Views bound
  // before stay where they are until then.
  absl::Status Pack();

  // The tensors that make up "X.weight", in one fixed order, for the fingerprint.
  std::vector<std::string> Parts(const std::string& tensor) const;
  bool any() const { return !bound_.empty(); }
  size_t packed_bytes() const;  // that Pack takes
  const QuantizationConfig& config() const { return config_; }

 private:
  struct Bound;  // a matrix
  absl::Status CheckBias(const std::string& base) const;
  absl::Status BindFp8(const std::string& base, Bound& bound);
  absl::Status BindIntegers(const std::string& base, Bound& bound);
  absl::Status PackOne(Bound& bound);

  const QuantizationConfig config_;
  const TensorLookup lookup_;
  std::vector<std::unique_ptr<Bound>> bound_;
};

}  // namespace sparsekv
