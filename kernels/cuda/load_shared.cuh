#pragma once

#include <cstdint>

namespace sparsekv::cuda {

// 16 bytes from an address of shared memory, after what was copied there past the registers.
__device__ inline uint4 LoadShared(uint32_t address) {
  uint4 value;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(address)
               : "memory");
  return value;
}

}  // namespace sparsekv::cuda
