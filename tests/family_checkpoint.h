#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "gpu_worker/device.h"

namespace sparsekv::testing {

// The families that golden/families has, by folder.
std::vector<std::string> GoldenFamilies();

// What transformers computed of one of them (golden/make_family_goldens.py).
struct FamilyGolden {
  std::vector<uint32_t> ids, positions;
  std::vector<float> logits[2];  // [positions, vocab]: of float32 weights, of bfloat16 weights
  double bfloat16_error = 0;     // of transformers in bfloat16, against the latter
};
FamilyGolden ReadFamilyGolden(const std::string& family);

// Such a checkpoint as files, its weights made from the tensors' names. Removed with the object.
class FamilyCheckpoint {
 public:
  // `changes` to config.json, which must leave the tensors' shapes; null takes a field out.
  FamilyCheckpoint(const std::string& family, DType dtype,
                   const nlohmann::json& changes = nlohmann::json::object());
  ~FamilyCheckpoint();
  FamilyCheckpoint(const FamilyCheckpoint&) = delete;
  FamilyCheckpoint& operator=(const FamilyCheckpoint&) = delete;

  // With `channels`, a channel config of so many random channels, of maximum pooling.
  ModelFiles Load(uint32_t channels = 0) const;
  const std::string& dir() const { return dir_; }

 private:
  std::string dir_;
};

}  // namespace sparsekv::testing
