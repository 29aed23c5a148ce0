#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace sparsekv {

// What a worker's process says of the CUDA devices here. This process starts no CUDA itself: its
// children are forked.
struct DeviceProbe {
  std::vector<uint64_t> free_bytes;  // of each device that can run this build
  std::string why;                   // where there is none
};
absl::StatusOr<DeviceProbe> ProbeDevices(const std::string& worker_program);

}  // namespace sparsekv
