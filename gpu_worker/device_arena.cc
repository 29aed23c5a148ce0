#include "gpu_worker/device_arena.h"

#include "absl/strings/str_cat.h"

namespace sparsekv {

DeviceArena::~DeviceArena() {
  for (std::byte* p : allocations_) backend_->Free(p);
}

absl::StatusOr<std::byte*> DeviceArena::Take(const std::string& kind, size_t bytes) {
  const size_t padded = Padded(bytes);
  if (padded > free_bytes()) {
    return absl::ResourceExhaustedError(absl::StrCat("device memory: ", kind, " needs ", padded,
                                                     " bytes, ", free_bytes(), " of ",
                                                     budget_bytes_, " are left"));
  }
  std::byte* p = backend_->Allocate(padded);
  if (p == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("device memory: ", kind, " needs ", padded,
                                                     " bytes, the device has ",
                                                     backend_->free_bytes(), " free"));
  }
  allocations_.push_back(p);
  used_bytes_ += padded;
  bytes_by_kind_[kind] += padded;
  return p;
}

}  // namespace sparsekv
