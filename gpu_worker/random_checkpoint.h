#pragma once

#include <cstdint>
#include <string>

#include "gpu_worker/device.h"

namespace sparsekv {

// A checkpoint of random weights and random channels, written as files and loaded like any other:
// what tests of the forward pass run on. Removed with the object.
class RandomCheckpoint {
 public:
  struct Shape {
    uint32_t layers = 2;
    uint32_t kv_heads = 2;
    uint32_t group = 2;
    uint32_t head_dim = 16;
    uint32_t hidden = 48;
    uint32_t intermediate = 80;
    uint32_t vocab = 160;
    uint32_t context = 1024;
    uint32_t channels = 4;  // label channels, 0 = no channel config
    LabelFormat label_format = LabelFormat::kBf16;
    DType dtype = DType::kF32;
    bool tied = false;
    // Matrices of layers as 4-bit codes, in GPTQ's layout with act-order and groups of 16.
    bool gptq = false;
  };
  RandomCheckpoint(const Shape& shape, uint64_t seed);
  ~RandomCheckpoint();

  const ModelFiles& files() const { return files_; }
  const std::string& dir() const { return dir_; }

 private:
  std::string dir_;
  ModelFiles files_;
};

}  // namespace sparsekv
