#pragma once

#include <chrono>

namespace sparsekv {

// Asks `done` again and again, without giving the core away, until it says yes or the time is over;
// its last answer. For waits that are mostly shorter than a sleep and a wake-up, some ten
// microseconds.
template <typename Done>
bool SpinUntil(std::chrono::steady_clock::time_point limit, Done done) {
  constexpr int kAsksPerLook = 8;  // at the clock
  while (true) {
    for (int i = 0; i < kAsksPerLook; ++i) {
      if (done()) return true;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    if (std::chrono::steady_clock::now() >= limit) return done();
  }
}

}  // namespace sparsekv
