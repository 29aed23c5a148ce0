#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "kernels/hot_rows.h"
#include "kernels/rows.h"
#include "kernels/window.h"

namespace sparsekv {

// Exact softmax attention of every query token of an item over its rows: rows 0 .. position of the
// token (causal, dense), or, where `selection` is given, the selected rows of each KV head. Query
// head h reads KV head h / group. out = sum_i softmax_i(scale * q . k_i) v_i in float32.
//
// With a window a dense token's rows begin at FirstInWindow(position); a selection holds no others.
//
// A token's result depends only on its q and on the list of its rows: entries are taken in the
// list's order, in tiles of 64 and splits of kAttendSplit entries counted from the list's start,
// whose partial results merge in order. With a window the count begins at AttendStart instead of 0,
// where the window's first row lies in the splits of a dense list. So dense equals a selection of
// all rows to the bit, and a chunk of prefill equals the same tokens one by one. (A device may
// split otherwise, by the list's length alone, and computes prompts in another way than decode
// steps: step.h.)
inline constexpr uint32_t kAttendTile = 64;
inline constexpr uint32_t kAttendSplit = 1024;
constexpr uint32_t AttendStart(uint32_t position, uint32_t window) {
  return FirstInWindow(position, window) % kAttendSplit;
}

// Where selected rows of an offloaded sequence are: those with a slot lie there, the others are
// read from the segment as they are attended, and left for whoever gives them slots then.
struct OffloadedRows {
  SlotTable hot;  // of 0 slots: no row has one
  // Where entry i of KV head h's list had no slot, Row(h, i) holds its row afterwards; other rows
  // of it may be overwritten. Without blocks: nothing is left.
  RowTable landing;
  bool kept = true;  // else nobody reads the landing afterwards: it is room that may be used
  struct CopyTimes* times = nullptr;  // copy_ahead.h; of the reads; the same for all of a call
  // What is still brought into `hot`: no more of it begins. Rows that come meanwhile are found
  // there or read, and landed, as others; both is right.
  struct CopyProgress* ahead = nullptr;

  // kNotHot: none.
  uint32_t SlotOf(uint32_t kv_head, uint32_t token) const {
    return hot.slots > 0 ? hot.SlotOf(kv_head, token) : kNotHot;
  }
};

struct AttendArgs {
  struct Item {
    StepSpan span;  // with a selection: exactly one token
    RowTable rows;
    // [kv_heads, selection_stride], rows (or slots) in the order in which they are summed; null =
    // dense.
    const uint32_t* selection = nullptr;
    uint32_t count = 0;  // entries of each selection
    // Where given, with a selection of tokens: `rows` is the segment's.
    std::optional<OffloadedRows> offloaded = std::nullopt;

    const std::byte* SelectedRow(uint32_t kv_head, uint32_t entry) const {
      const uint32_t slot = offloaded ? offloaded->SlotOf(kv_head, entry) : kNotHot;
      return slot == kNotHot ? rows.Row(kv_head, entry) : offloaded->hot.rows.Row(kv_head, slot);
    }
  };
  const float* q = nullptr;  // [step tokens, kv_heads * group, head_dim], after RoPE
  float* out = nullptr;      // the same shape; rows of tokens outside every item are not written
  uint32_t kv_heads = 0;
  uint32_t group = 0;
  uint32_t head_dim = 0;  // 8 .. kMaxHeadDim, a multiple of 8
  float scale = 1.0f;
  uint32_t window = 0;  // window.h
  size_t selection_stride = 0;
  std::span<const Item> items;
};

}  // namespace sparsekv
