#pragma once

#include <cstddef>

#include "absl/status/status.h"
#include "gpu_worker/device.h"
#include "kv_store/memory_check.h"

namespace sparsekv {

// Whether rows of so many tokens, and `beside` bytes of each token's own, fit this machine, before
// they are allocated in this process.
inline absl::Status CheckLocalMemory(const ModelFiles& files, size_t tokens, size_t beside = 0) {
  const auto blocks = static_cast<uint32_t>((tokens + kBlockTokens - 1) / kBlockTokens);
  const auto available = kv_store::AvailableMemory();
  if (!available.ok()) return available.status();
  return kv_store::CheckMemory(files.Layout(blocks).pool_bytes() + tokens * beside, *available);
}

}  // namespace sparsekv
