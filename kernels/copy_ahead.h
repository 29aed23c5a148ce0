#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/hot_rows.h"

namespace sparsekv {

// A prefetch that no host looks after: rows come in slices, and whoever needs the link says stop
// (attention that reads rows of its own: OffloadedRows::ahead). A row is named by its map when it
// is there, whole: who looks for rows meanwhile need not wait for it. The rows of all items count
// as one list: item by item, KV head by KV head, in the order of their moves. Slice s is the rows
// [s * kCopySliceRows, (s + 1) * kCopySliceRows) of it; slices begin in order, and one that has
// begun is finished.
inline constexpr uint32_t kCopySliceRows = 8;

// On the device. All zero before a prefetch begins.
struct CopyProgress {
  uint32_t stop = 0;    // not 0: no further slice begins
  uint32_t slices = 0;  // that were begun, or asked for when none was left
};

// Of misses that Resolve did not map.
struct CopyAheadArgs {
  struct Item {
    CopyRowsArgs::Item rows;  // REQUIRES: a list of moves
    SlotTable table;
  };
  uint32_t kv_heads = 0;
  std::span<const Item> items;
  CopyProgress* progress = nullptr;
};

// Empties the slots of the rows that CopyAhead was given and did not bring. REQUIRES: it is over,
// and nothing was resolved in those tables since they were given.
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
