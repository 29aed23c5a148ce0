#pragma once

#include <cstdint>

#include "kernels/cuda/cta.cuh"

// How selected tokens, a bit each, become a list.
namespace sparsekv::cuda::selection {

// Two counts in one number, so that one running sum does for both.
__device__ inline uint64_t Pack(uint32_t above, uint32_t equal) {
  return uint64_t{above} << 32 | equal;
}
__device__ inline uint32_t Above(uint64_t counts) { return static_cast<uint32_t>(counts >> 32); }
__device__ inline uint32_t Equal(uint64_t counts) { return static_cast<uint32_t>(counts); }

// The `count` lowest of the bits.
__device__ inline uint32_t LowestBits(uint32_t bits, uint32_t count) {
  for (uint32_t left = __popc(bits); left > count; --left) bits ^= 0x80000000u >> __clz(bits);
  return bits;
}

// Writes the tokens token + i of the bits i to to[at] and on, a word per lane. A lane writes its
// own where all have few, else all lanes write one lane's after the other, next to each other.
__device__ inline void WriteWords(uint32_t bits, uint32_t token, uint32_t at, uint32_t* to) {
  constexpr uint32_t kFew = 12;
  if (!__any_sync(kWholeWarp, __popc(bits) > kFew)) {
    for (; bits != 0; bits &= bits - 1) to[at++] = token + __ffs(bits) - 1;
    return;
  }
#pragma unroll 4
  for (uint32_t lane = 0; lane < kWarpThreads; ++lane) {
    const uint32_t of_lane = __shfl_sync(kWholeWarp, bits, lane);
    const uint32_t first = __shfl_sync(kWholeWarp, token, lane);
    const uint32_t first_at = __shfl_sync(kWholeWarp, at, lane);
    if (of_lane >> LaneId() & 1) {
      to[first_at + __popc(of_lane & LanesBefore())] = first + LaneId();
    }
  }
}

}  // namespace sparsekv::cuda::selection
