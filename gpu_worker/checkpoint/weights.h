#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu_worker/checkpoint/layer_weights.h"
#include "gpu_worker/checkpoint/model_config.h"
#include "gpu_worker/checkpoint/quantized_weights.h"
#include "gpu_worker/checkpoint/safetensors.h"
#include "kernels/matrix.h"

namespace sparsekv {

// The weights of a checkpoint directory: model.safetensors, or the shards that
// model.safetensors.index.json names. They stay where they lie in the mapped files, each tensor in
// its own type. Constant after Load; any thread may read. Views die with this object.
// Matrices of integer codes are copied in the layout that products read (quantized_weights.h).
class Weights {
 public:
  // kDescribe: nobody computes with them, so nothing is copied.
  enum class Use : uint8_t { kCompute, kDescribe };

  // One error of one line: missing tensors are named, or the first tensor of a wrong shape or
  // type, with both shapes.
  static absl::StatusOr<std::unique_ptr<Weights>> Load(const std::string& model_dir,
                                                       const ModelConfig& config,
                                                       Use use = Use::kCompute);

  // Weights that nobody trained, for benchmarks: the caller sets the views and keeps what they
  // show.
  static std::unique_ptr<Weights> MadeUp(DType row_dtype);

  WeightView embed;                  // [vocab, hidden]
  std::vector<LayerWeights> layers;  // [config.layers]
  WeightView norm;                   // [1, hidden]
  WeightView lm_head;                // [vocab, hidden]; `embed` when tied

  // Names the function that the checkpoint computes: the sizes and numbers of the forward pass, and
  // every tensor's name, type, shape, first and last 4 KiB. The same on every machine, for every
  // division into shards; another fine-tune of the same model has another one.
  uint64_t fingerprint() const { return fingerprint_; }

  // The type all of wk and wv have; float32 where they differ, which loses nothing. Of matrices of
  // codes, the type that config.json gives the model.
  DType row_dtype() const { return row_dtype_; }

  // The matrices that are stored as codes; null where there are none.
  const QuantizedWeights* quantized() const { return quantized_.get(); }

 private:
  Weights() = default;

  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::unique_ptr<QuantizedWeights> quantized_;
  uint64_t fingerprint_ = 0;
  DType row_dtype_ = DType::kF32;
};

// A checkpoint directory, read whole. config.row_dtype is weights->row_dtype().
struct Checkpoint {
  ModelConfig config;
  std::unique_ptr<Weights> weights;
};
absl::StatusOr<Checkpoint> LoadCheckpoint(const std::string& model_dir,
                                          Weights::Use use = Weights::Use::kCompute);

}  // namespace sparsekv
