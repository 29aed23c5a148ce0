#pragma once

#include <hwy/base.h>

#include <cstddef>

namespace sparsekv::cpu {

// Fetches memory that is needed next into the L2 cache, line by line, while what is there is
// computed. Whoever computes says when, so that the memory is never idle and never asked for all at
// once: a core waits for so many lines at most (24 of some), and loads that only the L2 cache has
// to answer need a place among them. Stretches that lie apart are fetched side by side, a line of
// each in turn, so that they wait together for their addresses to be looked up.
class LineFetch {
 public:
  static constexpr size_t kLine = 64;
  static constexpr size_t kBurst = 2;

  // `abreast` stretches (a multiple of kBurst) at the first addresses, then as many at the next,
  // `groups` times; the first `bytes` of each. The addresses are not copied.
  LineFetch(const std::byte* const* addresses, size_t abreast, size_t groups, size_t bytes)
      : next_(addresses),
        stop_(addresses + abreast),
        abreast_(abreast),
        groups_(groups),
        end_(bytes) {}

  // `count` more lines are due, in whole bursts. Who asks for more than there are gets some again.
  HWY_INLINE void Lines(size_t count) {
#pragma GCC unroll 4
    for (size_t i = 0; i < count; i += kBurst) {
#pragma GCC unroll 2
      for (size_t line = 0; line < kBurst; ++line) __builtin_prefetch(next_[line] + at_, 0, 2);
      next_ += kBurst;
      if (next_ == stop_) NextLine();
    }
  }

  // As many lines are due as are read by the steps 0, 1, ... of so many bytes (a power of two).
  HWY_INLINE void Step(size_t step, size_t bytes) {
    constexpr size_t kBytes = kBurst * kLine;
    if (bytes >= kBytes) {
      Lines(bytes / kLine);
    } else if (step % (kBytes / bytes) == 0) {
      Lines(kBurst);
    }
  }

 private:
  HWY_INLINE void NextLine() {
    next_ -= abreast_;
    at_ += kLine;
    if (at_ < end_) return;
    at_ = 0;
    if (groups_ == 1) return;
    --groups_;
    next_ = stop_;
    stop_ += abreast_;
  }

  const std::byte* const* next_;  // of the addresses before stop_: + at_ is due
  const std::byte* const* stop_;
  size_t at_ = 0;
  size_t abreast_;
  size_t groups_;  // this one included
  size_t end_;
};

}  // namespace sparsekv::cpu
