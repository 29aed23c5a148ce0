#pragma once

#include <hwy/base.h>

#include <cstddef>

namespace sparsekv::cpu {

// Fetches memory that is needed next into the L2 cache, while what is there is computed. Whoever
// computes says when, so that the memory is never idle and never asked for all at once: a core
// waits for so many lines at most (24 of some), and loads that only the L2 cache has to answer need
// a place among them. A burst asks for a line of each of kAbreast stretches that lie apart, so that
// they wait together for their addresses to be looked up, and their instructions for room among the
// misses.
template <size_t kAbreast>
class LineFetch {
 public:
  static constexpr size_t kLine = 64;
  static constexpr size_t kBurst = kAbreast * kLine;  // bytes

  // The first `bytes` of kAbreast stretches at the first addresses, then of as many at the next,
  // `groups` times. The addresses are not copied.
  LineFetch(const std::byte* const* addresses, size_t groups, size_t bytes)
      : next_(addresses), groups_(groups), end_(bytes) {}

  // A burst is due. Who asks for more than there are gets some again.
  HWY_INLINE void Burst() {
#pragma GCC unroll 8
    for (size_t i = 0; i < kAbreast; ++i) __builtin_prefetch(next_[i] + at_, 0, 2);
    at_ += kLine;
    if (at_ < end_) return;
    at_ = 0;
    if (groups_ == 1) return;
    --groups_;
    next_ += kAbreast;
  }

  // As much is due as is read by the steps 0, 1, ... of so many bytes (a power of two).
  HWY_INLINE void Step(size_t step, size_t bytes) {
    if (bytes >= kBurst) {
      for (size_t at = 0; at < bytes; at += kBurst) Burst();
    } else if (step % (kBurst / bytes) == 0) {
      Burst();
    }
  }

  // As much is due as is read by one of the equal parts of so many bytes.
  HWY_INLINE void Part(size_t part, size_t parts, size_t bytes) {
    const size_t bursts = (bytes + kBurst - 1) / kBurst;
    for (size_t i = bursts * part / parts; i < bursts * (part + 1) / parts; ++i) Burst();
  }

 private:
  const std::byte* const* next_;  // kAbreast of them: + at_ is due
  size_t groups_;                 // this one included
  size_t at_ = 0;
  size_t end_;
};

}  // namespace sparsekv::cpu
