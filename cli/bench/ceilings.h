#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/cpu/thread_pool.h"

namespace sparsekv {

// What the machine gives at most, measured with all threads of the pool. Each call measures once
// and returns seconds; callers repeat and take medians.

// Reads `memory` once, in long stretches.
double StreamRead(cpu::ThreadPool& pool, std::span<const std::byte> memory);

// Reads rows of `row_bytes` (a multiple of 64) at the given offsets, with prefetching.
double ReadRows(cpu::ThreadPool& pool, const std::byte* memory, std::span<const uint64_t> offsets,
                size_t row_bytes);

// Fused multiply-adds on registers, `flops` in all (at least).
struct FmaRun {
  double flops = 0;
  double seconds = 0;
};
FmaRun MultiplyAdd(cpu::ThreadPool& pool);

}  // namespace sparsekv
