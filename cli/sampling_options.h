#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "sparsekv/v1/generation.pb.h"

namespace sparsekv {

// The options of a request that `generate` and `chat` share.
struct SamplingOptions {
  uint32_t max_tokens = 128;
  double temperature = 0, top_p = 1;
  uint32_t top_k = 0;
  uint64_t seed = 0;
  std::vector<std::string> stop;
  std::string attention, budget;
  double recall_target = 0;
  CLI::Option *seed_set = nullptr, *recall_target_set = nullptr;

  // The options; this outlives the parsing and what Apply is used for.
  void AddTo(CLI::App* command);
  // Everything but the prompt. INVALID_ARGUMENT names the option.
  absl::Status Apply(v1::GenerateRequest* request) const;
};

}  // namespace sparsekv
