#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace sparsekv {

// The device's memory: taken once at start, never afterwards, and never more than the budget. On
// the cpu backend it is ordinary memory that is accounted like a device's, so that what fits and
// what does not is the same question on both (and weights stay outside, in their mapped files).
// Owned by the device thread; the backend outlives it.
class DeviceArena {
 public:
  DeviceArena(size_t budget_bytes, Backend* backend)
      : budget_bytes_(budget_bytes), backend_(backend) {}
  ~DeviceArena();
  DeviceArena(const DeviceArena&) = delete;
  DeviceArena& operator=(const DeviceArena&) = delete;

  // Zeroed memory aligned to 256 bytes that lives as long as the arena. `kind` names it in the plan
  // and in the metrics ("labels", "activations", ...). RESOURCE_EXHAUSTED names the kind, what it
  // needs and what is left.
  absl::StatusOr<std::byte*> Take(const std::string& kind, size_t bytes);

  // Takes bytes of the budget for memory that the backend itself holds.
  void Count(const std::string& kind, size_t bytes) {
    used_bytes_ += bytes;
    bytes_by_kind_[kind] += bytes;
  }
  // What Take takes of the budget.
  static size_t Padded(size_t bytes) { return (bytes + 255) / 256 * 256; }

  size_t budget_bytes() const { return budget_bytes_; }
  size_t used_bytes() const { return used_bytes_; }
  size_t free_bytes() const { return budget_bytes_ - used_bytes_; }
  const std::map<std::string, size_t>& bytes_by_kind() const { return bytes_by_kind_; }

 private:
  size_t budget_bytes_;
  Backend* backend_;
  size_t used_bytes_ = 0;
  std::map<std::string, size_t> bytes_by_kind_;
  std::vector<std::byte*> allocations_;
};

}  // namespace sparsekv
