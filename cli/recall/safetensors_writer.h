#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/dtype.h"

namespace sparsekv {

// Collects tensors of one type in memory and writes them as one safetensors file, in the order in
// which they were added.
class SafetensorsWriter {
 public:
  explicit SafetensorsWriter(DType dtype) : dtype_(dtype) {}

  // Rounds to nearest even.  REQUIRES: values.size() is the product of `shape`; a new name.
  void Add(const std::string& name, const std::vector<uint64_t>& shape,
           std::span<const float> values);

  // Creates or replaces `path` as a whole.
  absl::Status Write(const std::string& path) const;

 private:
  const DType dtype_;
  nlohmann::json header_ = nlohmann::json::object();
  std::string data_;
};

}  // namespace sparsekv
