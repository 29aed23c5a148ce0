#pragma once

// Where a kernel of a step begins (tests/structure_test.cc counts), and where the next one may.
namespace sparsekv::cuda {

// A kernel may be given to the device while the one before it still runs (tape.h): its CTAs take
// what room there is and wait here. After this, everything that kernels before wrote is there;
// before it a kernel may read only what no kernel of the step writes (weights, the step's
// parameters, tables of blocks and pages) and write nothing but its own shared memory. Every kernel
// waits, here or at its end, so that one that is over says the same of all before it.
__device__ inline void BeginKernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" : : : "memory");
#endif
}

// Instead, at the end of a kernel that is told piece by piece what it needs of the kernel right
// before (rows_done.cuh).
__device__ inline void EndKernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" : : : "memory");
#endif
}

// The kernel after this one may come: once every CTA has said so or is over. Said by kernels that
// leave most of the device free, or that are nearly done: CTAs that come while multiprocessors are
// full are put where there is room first, several on one, and a small kernel's few are then not
// spread over the device (a step took 11 to 25 % longer when every kernel said this at its start).
// And by the one that scores and selects, at its start, for the attention that takes its rows as
// they come; where another kernel follows, a step takes no longer by what was measured.
__device__ inline void NextMayBegin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" : : : "memory");
#endif
}

}  // namespace sparsekv::cuda
