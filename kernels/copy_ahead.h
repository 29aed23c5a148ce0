#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/hot_rows.h"

namespace sparsekv {

// A prefetch that no host looks after: rows come in slices, and whoever needs the link says stop.
// The rows of all items count as one list: item by item, KV head by KV head, in the order of their
// moves. Slice s is the rows [s * kCopySliceRows, (s + 1) * kCopySliceRows) of it; slices begin in
// order, and one that has begun is finished.
inline constexpr uint32_t kCopySliceRows = 32;

// On the device. All zero before a prefetch begins.
struct CopyProgress {
  uint32_t stop = 0;        // not 0: no further slice begins
  uint32_t slices = 0;      // that were begun, or asked for when none was left
  uint64_t stopped_ns = 0;  // the device's clock at the stop, and when the last row was there
  uint64_t finished_ns = 0;
};

struct CopyAheadArgs {
  uint32_t kv_heads = 0;
  std::span<const CopyRowsArgs::Item> items;
  CopyProgress* progress = nullptr;
};

// Empties the slots of the rows that CopyAhead was given and did not bring. REQUIRES: nothing was
// resolved in those tables since they were given.
struct ForgetRestArgs {
  struct Item {
    SlotTable table;
    const RowMove* moves = nullptr;  // as CopyAhead's, in the same order
    size_t stride = 0;
    const Resolved* resolved = nullptr;
  };
  uint32_t kv_heads = 0;
  std::span<const Item> items;
  const CopyProgress* progress = nullptr;
};

// When the first of a layer's missing rows was asked for and the last was there, by the device's
// clock: with the attention to others that went on meanwhile. Zero = never.
struct CopyTimes {
  uint64_t begin_ns = 0;
  uint64_t end_ns = 0;
};

}  // namespace sparsekv
