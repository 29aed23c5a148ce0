#include "gpu_worker/device_arena.h"

#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace sparsekv {

namespace {
constexpr size_t kAlign = 64;
}

DeviceArena::~DeviceArena() {
  for (std::byte* p : allocations_) std::free(p);
}

absl::StatusOr<std::byte*> DeviceArena::Take(const std::string& kind, size_t bytes) {
  const size_t padded = Padded(bytes);
  if (padded > free_bytes()) {
    return absl::ResourceExhaustedError(absl::StrCat("device memory: ", kind, " needs ", padded,
                                                     " bytes, ", free_bytes(), " of ",
                                                     budget_bytes_, " are left"));
  }
  auto* p = static_cast<std::byte*>(std::aligned_alloc(kAlign, padded ? padded : kAlign));
  CHECK(p != nullptr);
  std::memset(p, 0, padded);
  allocations_.push_back(p);
  used_bytes_ += padded;
  bytes_by_kind_[kind] += padded;
  return p;
}

}  // namespace sparsekv
