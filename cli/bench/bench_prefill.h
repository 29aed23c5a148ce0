#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace sparsekv {

// `sparsekv bench prefill`: a prompt of random weights, whole, the way its placement asks for:
// chunk by chunk through all layers, or layer by layer with one layer's rows on the device.
struct PrefillBenchOptions {
  std::string shape = "llama-3.1-8b";
  uint32_t layers = 0;  // 0 = the shape's
  std::vector<uint32_t> tokens = {32768};
  std::string placement = "offload";
  std::string backend = "cpu";
  bool exact_prompts = false;
  uint32_t rounds = 3;
  uint32_t threads = 0;
  bool json = false;
};

absl::Status BenchPrefill(const PrefillBenchOptions& options);

}  // namespace sparsekv
