#pragma once

#include <cstdint>

#include "kernels/copy_ahead.h"

// CopyTimes, kept by kernels: whoever has copied hands in its own.
namespace sparsekv::cuda {

__device__ inline uint64_t GlobalTime() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

// The earlier of *time and `now`; 0 = none so far.
__device__ inline void KeepEarlier(uint64_t* time, uint64_t now) {
  auto* at = reinterpret_cast<unsigned long long*>(time);
  unsigned long long seen = *reinterpret_cast<volatile unsigned long long*>(at);
  while (seen == 0 || now < seen) {
    const unsigned long long found = atomicCAS(at, seen, now);
    if (found == seen) return;
    seen = found;
  }
}

__device__ inline void KeepLater(uint64_t* time, uint64_t now) {
  atomicMax(reinterpret_cast<unsigned long long*>(time), static_cast<unsigned long long>(now));
}

// When a warp's reads began and ended: in few registers, so no more than 4 seconds apart.
class ReadTimes {
 public:
  __device__ void Begin() {
    if (read_) return;
    begin_ = end_ = static_cast<uint32_t>(GlobalTime());
    read_ = true;
  }
  // The last that ends is kept.
  __device__ void End() { end_ = static_cast<uint32_t>(GlobalTime()); }
  // By one lane. `times`: null = nobody asks.
  __device__ void Note(CopyTimes* times) const {
    if (!read_ || times == nullptr) return;
    const uint64_t now = GlobalTime();
    const auto ago = [now](uint32_t time) { return now - (static_cast<uint32_t>(now) - time); };
    KeepEarlier(&times->begin_ns, ago(begin_));
    KeepLater(&times->end_ns, ago(end_));
  }

 private:
  uint32_t begin_ = 0, end_ = 0;
  bool read_ = false;
};

}  // namespace sparsekv::cuda
