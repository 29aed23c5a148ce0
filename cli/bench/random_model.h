#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/bench/bench_labels.h"
#include "gpu_worker/device.h"

namespace sparsekv {

// A model of a well-known shape with random weights in memory, made so that what decides about
// prefetching is as in trained models, and can be set:
//
// - The inputs of consecutive layers have the cosine `layer_similarity`: the MLP's output is scaled
//   to it (attention's over random rows is small).
// - Consecutive steps ask similar questions: token id s is the s-th state of a walk whose steps
// have
//   the cosine `step_cosine`, so the label queries of a layer turn by as much from step to step.
// - Labels are channels whose rotation over a bench's steps is nothing, as heavy channels are.
struct RandomModelSpec {
  std::string shape;    // ShapeNames()
  uint32_t layers = 0;  // 0 = the shape's
  uint32_t context = 0;
  double layer_similarity = 0.95;
  uint32_t states = 0;  // token ids 0 .. states-1
  uint64_t seed = 1;
  Encoding encoding = Encoding::kPlain;  // of the matrices; kPlain: bfloat16
  BenchLabels labels;
};

class RandomModel {
 public:
  // INVALID_ARGUMENT names a shape that is not known, or more channels than head_dim;
  // RESOURCE_EXHAUSTED where memory is short.
  static absl::StatusOr<std::unique_ptr<RandomModel>> Make(const RandomModelSpec& spec);
  static std::vector<std::string> ShapeNames();

  const ModelFiles& files() const { return files_; }
  // Makes the walk anew.
  void SetSteps(double step_cosine);
  size_t weight_bytes() const { return weight_bytes_; }    // that one step reads
  size_t weight_values() const { return weight_values_; }  // and multiplies with

 private:
  struct Block {
    std::unique_ptr<std::byte[]> memory;
    size_t bytes = 0;
  };
  RandomModel() = default;
  WeightView Matrix(uint32_t rows, uint32_t cols, double deviation);
  WeightView Codes(uint32_t rows, uint32_t cols, double deviation);
  WeightView Ones(uint32_t cols);
  void MakeWeights(const RandomModelSpec& spec);
  void MakeChannels(uint64_t seed, const BenchLabels& labels);

  ModelFiles files_;
  std::vector<Block> blocks_;
  uint16_t* embed_ = nullptr;  // [states, hidden]
  uint32_t states_ = 0;
  uint64_t seed_ = 0;
  size_t weight_bytes_ = 0, weight_values_ = 0;
  Encoding encoding_ = Encoding::kPlain;
};

// Fills with bfloat16 values of a uniform distribution of the given deviation, on all cores.
void FillBf16(void* memory, size_t values, double deviation, uint64_t seed);
// Fills with random bits, on all cores.
void FillBits(void* memory, size_t bytes, uint64_t seed);

}  // namespace sparsekv
