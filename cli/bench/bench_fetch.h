#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "gpu_worker/simulated_link.h"

namespace sparsekv {

// `sparsekv bench fetch`: rows brought to the device directly, and gathered by the store's threads,
// by row size and count.
struct FetchBenchOptions {
  LinkSpec link;
  uint32_t rounds = 21;
  uint32_t gather_threads = 1;
  bool json = false;
};

absl::Status BenchFetch(const FetchBenchOptions& options);

}  // namespace sparsekv
