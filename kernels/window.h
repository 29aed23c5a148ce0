#pragma once

#include <cstdint>

namespace sparsekv {

// A layer's sliding window: the token at `position` attends the `window` tokens that end with its
// own. Returns the first of them. 0 = no window: it attends everything before it.
constexpr uint32_t FirstInWindow(uint32_t position, uint32_t window) {
  return window == 0 || position < window ? 0 : position + 1 - window;
}

}  // namespace sparsekv
