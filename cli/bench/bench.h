#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace sparsekv {

// `sparsekv bench kernels`: the CPU backend's operations beside what this machine gives at most.
struct KernelBenchOptions {
  uint32_t threads = 0;  // 0 = one per core
  uint32_t rounds = 11;  // each measures the ceilings, then every case
  std::string filter;    // cases whose names contain it; empty = all
  bool json = false;
};

// Whether a case of that name exists.
bool KernelCaseExists(const std::string& filter);

absl::Status BenchKernels(const KernelBenchOptions& options);

}  // namespace sparsekv
