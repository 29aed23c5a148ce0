#pragma once

// What every kernel of a step does first (tests/structure_test.cc counts).
namespace sparsekv::cuda {

// A kernel may be given to the device while the one before it still runs (tape.h): its CTAs take
// what room there is and wait here. After this, everything that kernels before wrote is there;
// before it a kernel may read only what no kernel of the step writes (weights, the step's
// parameters, tables of blocks and pages) and write nothing but its own shared memory. Every kernel
// waits, so that one that is over says the same of all before it.
//
// The kernel after this one may come from now on: all of a kernel's CTAs have begun before the
// first of the next one is placed.
__device__ inline void BeginKernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" : : : "memory");
  asm volatile("griddepcontrol.wait;" : : : "memory");
#endif
}

}  // namespace sparsekv::cuda
