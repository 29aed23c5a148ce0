#pragma once

#include <cstdint>

#include "kernels/cuda/rows_done.h"

namespace sparsekv::cuda {

// By one thread of each CTA of the row, after a barrier of all that wrote.
__device__ inline void SayDone(RowsDone done, uint32_t row) {
  if (done.ctas > 1) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;"
                 :
                 : "l"(done.words + 1 + row)
                 : "memory");
    return;
  }
  const uint32_t at = atomicAdd(done.words, 1);
  asm volatile("st.release.gpu.global.u32 [%0], %1;"
               :
               : "l"(done.words + 1 + at), "r"(row + 1)
               : "memory");
}

// The row that is number `at`, from 0, of those that are done, or simply row `at` where rows have
// several CTAs: they come together then. What was written for it, and by all kernels before, is
// seen by the thread. REQUIRES: the CTAs of the kernel that says so are at work or have been, each
// waited for the kernels before it, and they wait for nobody outside of it.
__device__ inline uint32_t WaitForRow(RowsDone done, uint32_t at) {
  while (true) {
    uint32_t word;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                 : "=r"(word)
                 : "l"(done.words + 1 + at)
                 : "memory");
    if (done.ctas == 1 && word > 0) return word - 1;
    if (done.ctas > 1 && word == done.ctas) return at;
    __nanosleep(100);
  }
}

}  // namespace sparsekv::cuda
