#pragma once

#include <cstdint>

// What a step reads once (weights, of up to 32 tokens, and rows; where there are more tokens or
// query heads, a few times) goes from L2 before what it comes back to. What matters most to keep
// are page table entries of host memory: its pages are small, each row of the segment needs an
// entry, and where L2 has lost them rows come at half the link's speed.
namespace sparsekv::cuda {

// For instructions that take a cache hint.
__device__ inline uint64_t ReadOnce() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

}  // namespace sparsekv::cuda
