#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu_worker/checkpoint/layer_weights.h"
#include "gpu_worker/checkpoint/model_config.h"
#include "gpu_worker/checkpoint/safetensors.h"
#include "kernels/matrix.h"

namespace sparsekv {

// The weights of a checkpoint directory: model.safetensors, or the shards that
// model.safetensors.index.json names. They stay where they lie in the mapped files, each tensor in
// its own type. Constant after Load; any thread may read. Views die with this object.
class Weights {
 public:
  // One error of one line: every missing tensor is named, or the first tensor of a wrong shape or
  // type, with both shapes.
  static absl::StatusOr<std::unique_ptr<Weights>> Load(const std::string& model_dir,
                                                       const ModelConfig& config);

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

  // The type all of wk and wv have; float32 where they differ, which loses nothing.
  DType row_dtype() const { return row_dtype_; }

 private:
  Weights() = default;

  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  uint64_t fingerprint_ = 0;
  DType row_dtype_ = DType::kF32;
};

// A checkpoint directory, read whole. config.row_dtype is weights->row_dtype().
struct Checkpoint {
  ModelConfig config;
  std::unique_ptr<Weights> weights;
};
absl::StatusOr<Checkpoint> LoadCheckpoint(const std::string& model_dir);

}  // namespace sparsekv
