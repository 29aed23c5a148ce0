#pragma once

#include <cstdint>

// What a step reads once (weights, rows, labels) goes from L2 before what it comes back to. Not
// least that are the page tables of host memory: its pages are small, a row of the segment needs an
// entry of its own, and entries that L2 has lost make rows come at half the link's speed.
namespace sparsekv::cuda {

// For instructions that take a cache hint.
__device__ inline uint64_t ReadOnce() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

}  // namespace sparsekv::cuda
