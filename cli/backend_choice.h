#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/serve_options.h"
#include "gpu_worker/device.h"

namespace sparsekv {

// Where a server's workers run, and how the memory of each one's device is divided.
struct BackendChoice {
  bool cuda = false;
  std::vector<int> devices;  // CUDA ordinals, one per worker
  std::vector<int> nodes;    // of the machine, that these are attached to; -1 = not known
  uint64_t device_bytes = 0;
  MemoryPlan memory;
};

// `--backend auto` takes CUDA where it can do all that is asked, and says why where it cannot.
absl::StatusOr<BackendChoice> ChooseBackend(const ServeOptions& options, const ModelFiles& files,
                                            const std::string& worker_program);

}  // namespace sparsekv
