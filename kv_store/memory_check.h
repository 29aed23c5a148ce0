#pragma once

#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace sparsekv::kv_store {

// How much memory this process could still take before the kernel kills somebody for it:
// MemAvailable, or what its cgroup (v2) or one above it has left, whichever is less. Reads the
// files afresh; a cgroup that cannot be seen from here sets no limit.
struct MemorySources {
  std::string meminfo = "/proc/meminfo";
  std::string own_cgroup = "/proc/self/cgroup";
  std::string cgroup_root = "/sys/fs/cgroup";
};
absl::StatusOr<size_t> AvailableMemory(const MemorySources& sources = {});

// RESOURCE_EXHAUSTED, with both numbers, if `what` needs more than is available.
absl::Status CheckMemory(size_t needed_bytes, size_t available_bytes, const char* what = "segment");

}  // namespace sparsekv::kv_store
