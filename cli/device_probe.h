#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace sparsekv {

// What a worker's process says of the CUDA devices here. This process starts no CUDA itself: its
// children are forked.
struct DeviceProbe {
  struct Device {
    int ordinal = 0;
    uint64_t free_bytes = 0;
    int node = -1;  // of the machine, that it is attached to; -1 = not known
  };
  std::vector<Device> devices;  // that can run this build
  std::string why;              // where there is none
};
absl::StatusOr<DeviceProbe> ProbeDevices(const std::string& worker_program);

}  // namespace sparsekv
