#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <utility>
#include <vector>

#include "base/check.h"

namespace sparsekv {

// Random numbers that are the same on every machine for one seed (the standard library leaves its
// distributions to the implementation). SplitMix64. A value type, used by one thread.
class SeededRandom {
 public:
  // Streams of one seed with different names are independent.
  SeededRandom(uint64_t seed, uint64_t stream) : state_(seed ^ (stream * 0xD1B54A32D192ED03ull)) {}

  uint64_t Next() {
    state_ += 0x9E3779B97F4A7C15ull;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }

  // 0..bound-1; the bias of the remainder is below bound / 2^64.
  size_t Below(size_t bound) {
    CHECK_GT(bound, size_t{0});
    return Next() % bound;
  }

  // Mean 0, deviation 1.
  double Normal() {
    const double radius = std::sqrt(-2.0 * std::log((Next() >> 11) * 0x1p-53 + 0x1p-54));
    return radius * std::cos(2.0 * std::numbers::pi * ((Next() >> 11) * 0x1p-53));
  }

  template <typename T>
  void Shuffle(std::vector<T>& items) {
    for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[Below(i)]);
  }

 private:
  uint64_t state_;
};

}  // namespace sparsekv
