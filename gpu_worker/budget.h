#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/select.h"

namespace sparsekv {

// How many token rows a selection may hold, the always-set included: a count of rows, or 1/N of the
// tokens present at the step. Exactly one of the two is not 0; both 0 means dense attention.
struct RowBudget {
  uint32_t rows = 0;
  uint32_t denominator = 0;

  bool dense() const { return rows == 0 && denominator == 0; }

  // Rows at a step with `tokens` tokens present (the current one included), of which those before
  // `first` are outside of the layer's window: never less than the always-set, never more than
  // there are in the window, of which a fraction is one.
  uint32_t At(uint32_t tokens, uint32_t first = 0) const {
    const uint32_t present = tokens - first;
    const uint32_t wanted =
        denominator ? (present / denominator + (present % denominator != 0)) : rows;
    return std::clamp(wanted, AlwaysSetSize(tokens, first), present);
  }
};

}  // namespace sparsekv
