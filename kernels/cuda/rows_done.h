#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/step.h"

namespace sparsekv::cuda {

// Which rows (KV heads of items) have their selection: what scoring and selecting says row by row,
// so that attention over the selections begins with those that are there while others are scored
// (rows_done.cuh). In the step's parameters, all zeros before it.
struct RowsDone {
  // One CTA per row: [0] how many rows are done, then [rows] which, + 1, in the order in which they
  // came. More: from 1 on [rows] how many CTAs of each are done.
  uint32_t* words = nullptr;
  uint32_t ctas = 0;  // of a row
  uint32_t zero = 0;  // arguments are hashed as bytes: there is no padding

  static constexpr size_t Words(size_t rows) { return 1 + rows; }
  constexpr bool any() const { return words != nullptr; }
};

// What scoring and selecting leaves to the attention that follows it, on the host.
struct SelectedRows {
  RowsDone done;
  uint32_t kv_heads = 0;
  size_t stride = 0;
  std::vector<const uint32_t*> selections;  // of its items
  uint64_t noted = 0;                       // Tape::noted() after it: what is right behind it
  Lane lane = Lane::kCompute;
};

}  // namespace sparsekv::cuda
