#pragma once

#include <cstdint>

// Sums over the threads of a CTA, which has whole warps. What one of these functions does is done
// by every thread of the warp or of the CTA together.
namespace sparsekv::cuda {

inline constexpr uint32_t kWarpThreads = 32;
inline constexpr uint32_t kWholeWarp = 0xFFFFFFFF;

__device__ inline uint32_t LaneId() { return threadIdx.x % kWarpThreads; }
__device__ inline uint32_t WarpId() { return threadIdx.x / kWarpThreads; }
__device__ inline uint32_t LanesBefore() { return (1u << LaneId()) - 1; }  // as a mask

// Of this lane's value and those of the lanes before it.
template <typename T>
__device__ T WarpRunningSum(T value) {
#pragma unroll
  for (uint32_t step = 1; step < kWarpThreads; step *= 2) {
    const T other = __shfl_up_sync(kWholeWarp, value, step);
    if (LaneId() >= step) value += other;
  }
  return value;
}

// In one order, the same on every lane.
template <typename T>
__device__ T WarpSum(T value) {
#pragma unroll
  for (uint32_t step = kWarpThreads / 2; step > 0; step /= 2) {
    value += __shfl_xor_sync(kWholeWarp, value, step);
  }
  return value;
}

template <typename T>
struct Running {
  T before;  // of those before
  T all;
};

// Of values that are the same on all lanes of a warp. `totals`: shared, one per warp. Begins with a
// barrier: what was written to shared memory before is seen by all after it.
template <typename T>
__device__ Running<T> RunningSumOfWarps(T value, T* totals) {
  __syncthreads();
  if (LaneId() == 0) totals[WarpId()] = value;
  __syncthreads();
  const T of_warp = LaneId() < blockDim.x / kWarpThreads ? totals[LaneId()] : T{0};
  const T sum = WarpRunningSum(of_warp);
  return {__shfl_sync(kWholeWarp, sum - of_warp, WarpId()),
          __shfl_sync(kWholeWarp, sum, kWarpThreads - 1)};
}

// Of one value per thread.
template <typename T>
__device__ Running<T> RunningSum(T value, T* totals) {
  const T sum = WarpRunningSum(value);
  const Running<T> warps =
      RunningSumOfWarps(__shfl_sync(kWholeWarp, sum, kWarpThreads - 1), totals);
  return {warps.before + sum - value, warps.all};
}

}  // namespace sparsekv::cuda
