#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "cli/bench/bench_labels.h"

namespace sparsekv {

// `sparsekv bench kernels`: a backend's operations beside what this machine gives at most.
struct KernelBenchOptions {
  std::string backend = "cpu";  // or "cuda"
  bool full = false;            // cuda: every batch and context
  uint32_t threads = 0;         // cpu: 0 = one per core
  uint32_t rounds = 11;         // each measures the ceilings, then every case
  std::string filter;           // cases whose names contain it; empty = all
  BenchLabels labels;           // at most kMostLabelChannels
  bool json = false;
};

// The least head_dim of a case whose labels have channels.
inline constexpr uint32_t kMostLabelChannels = 64;

// Whether a case of the backend has a name that contains the filter.
bool KernelCaseExists(const KernelBenchOptions& options);

absl::Status BenchKernels(const KernelBenchOptions& options);

}  // namespace sparsekv
