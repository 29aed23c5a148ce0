#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace sparsekv {

// `sparsekv bench kernels`: a backend's operations beside what this machine gives at most.
struct KernelBenchOptions {
  std::string backend = "cpu";  // or "cuda"
  bool full = false;            // cuda: every batch and context
  uint32_t threads = 0;         // cpu: 0 = one per core
  uint32_t rounds = 11;         // each measures the ceilings, then every case
  std::string filter;           // cases whose names contain it; empty = all
  bool json = false;
};

// Whether a case of the backend has a name that contains the filter.
bool KernelCaseExists(const KernelBenchOptions& options);

absl::Status BenchKernels(const KernelBenchOptions& options);

}  // namespace sparsekv
