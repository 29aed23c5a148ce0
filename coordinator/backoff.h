#pragma once

#include <algorithm>
#include <chrono>

namespace sparsekv {

// How long to wait before the next attempt to reach a peer: doubles from 20 ms to 1 s.
class Backoff {
 public:
  std::chrono::milliseconds Next() {
    const auto wait = next_;
    next_ = std::min(next_ * 2, kLongest);
    return wait;
  }
  void Reset() { next_ = kShortest; }
  void Slow() { next_ = kLongest; }  // the peer is there, but of no use

 private:
  static constexpr std::chrono::milliseconds kShortest{20};
  static constexpr std::chrono::milliseconds kLongest{1000};
  std::chrono::milliseconds next_ = kShortest;
};

}  // namespace sparsekv
