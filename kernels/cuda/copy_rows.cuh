#pragma once

#include <algorithm>
#include <vector>

#include "base/check.h"
#include "kernels/cuda/cta.cuh"
#include "kernels/cuda/tables.cuh"
#include "kernels/cuda/tape.h"

// Rows from one place to another that the device alone knows: lists of moves, of counts that
// kernels before have written. Every CTA counts them.
namespace sparsekv::cuda {
namespace {

constexpr uint32_t kThreads = 256;
constexpr uint32_t kWarps = kThreads / kWarpThreads;
constexpr uint32_t kInFlight = 8;     // loads of a lane
constexpr size_t kMostLists = 12000;  // (item, KV head) pairs, whose counts lie in shared memory

struct CopyItem {
  RowsView from;
  RowsView to;
  const RowMove* moves;
  uint64_t stride;
  const Resolved* resolved;
  uint32_t first_rows;
};

// The rows of all items, item by item, KV head by KV head: list l is that of KV head l % kv_heads
// of item l / kv_heads. Fewer than 2^32, as they fit into a device's memory.
struct RowList {
  const CopyItem* items;
  uint32_t kv_heads;
  uint32_t lists;

  __device__ uint32_t Count(uint32_t list) const {
    const CopyItem& item = items[list / kv_heads];
    return item.first_rows ? item.first_rows : item.resolved[list % kv_heads].misses;
  }
};

// Fills starts [lists]: the rows before each list; returns all. By the whole CTA, of at most
// kThreads.
__device__ uint32_t CountRows(const RowList& rows, uint32_t* starts) {
  __shared__ uint32_t totals[kWarps];
  uint32_t before = 0;
  for (uint32_t first = 0; first < rows.lists; first += blockDim.x) {
    const uint32_t list = first + threadIdx.x;
    const uint32_t count = list < rows.lists ? rows.Count(list) : 0;
    const Running<uint32_t> running = RunningSum(count, totals);
    if (list < rows.lists) starts[list] = before + running.before;
    before += running.all;
  }
  __syncthreads();
  return before;
}

// A row of the list of all.
struct Entry {
  uint32_t item, head;
  RowMove move;
};

// Row `row` < all.
__device__ Entry FindEntry(const RowList& rows, const uint32_t* starts, uint32_t row) {
  uint32_t list = 0, end = rows.lists;  // starts[list] <= row, and those from `end` on are above
  while (end - list > 1) {
    const uint32_t middle = (list + end) / 2;
    if (starts[middle] <= row) {
      list = middle;
    } else {
      end = middle;
    }
  }
  const CopyItem& item = rows.items[list / rows.kv_heads];
  const uint32_t head = list % rows.kv_heads, i = row - starts[list];
  const RowMove move = item.first_rows ? RowMove{i, i} : item.moves[head * item.stride + i];
  return {list / rows.kv_heads, head, move};
}

__device__ const std::byte* FromOf(const RowList& rows, const Entry& entry) {
  return rows.items[entry.item].from.Row(entry.head, entry.move.token);
}
__device__ std::byte* ToOf(const RowList& rows, const Entry& entry) {
  return rows.items[entry.item].to.Row(entry.head, entry.move.slot);
}

// A row as units that a lane copies at once; its fastest division over the lanes of a warp.
struct Units {
  uint32_t per_row;
  uint32_t rows_on, units_on;  // 32 units further are so many rows and units further

  __device__ explicit Units(uint32_t units)
      : per_row(units), rows_on(kWarpThreads / units), units_on(kWarpThreads % units) {}
  __device__ void Advance(uint32_t& row, uint32_t& unit) const {
    row += rows_on;
    unit += units_on;
    if (unit >= per_row) {
      unit -= per_row;
      ++row;
    }
  }
};

template <typename T>
__device__ T* FromLane(T* pointer, uint32_t lane) {
  const auto value = reinterpret_cast<unsigned long long>(pointer);
  return reinterpret_cast<T*>(__shfl_sync(kWholeWarp, value, static_cast<int>(lane)));
}

// A warp copies rows [first, first + count), at most 32: a lane finds each row's way, then all
// lanes take the rows' units in order.
template <typename Unit>
__device__ void CopyWith(const RowList& rows, const uint32_t* starts, const Units& units,
                         uint32_t first, uint32_t count) {
  const Entry entry = FindEntry(rows, starts, first + min(LaneId(), count - 1));
  const std::byte* row_from = FromOf(rows, entry);
  std::byte* row_to = ToOf(rows, entry);
  uint32_t row = LaneId() / units.per_row, unit = LaneId() % units.per_row;
  const uint32_t all = count * units.per_row;
  for (uint32_t done = 0; done < all; done += kInFlight * kWarpThreads) {
    Unit values[kInFlight];
    uint32_t from_row = row, from_unit = unit;
#pragma unroll
    for (uint32_t i = 0; i < kInFlight; ++i) {
      const std::byte* from = FromLane(row_from, from_row);
      if (from_row < count) values[i] = __ldcs(reinterpret_cast<const Unit*>(from) + from_unit);
      units.Advance(from_row, from_unit);
    }
#pragma unroll
    for (uint32_t i = 0; i < kInFlight; ++i) {
      std::byte* to = FromLane(row_to, row);
      if (row < count) reinterpret_cast<Unit*>(to)[unit] = values[i];
      units.Advance(row, unit);
    }
  }
}

struct Copies {
  RowList rows;
  size_t starts_bytes;
  uint32_t row_bytes;
  bool wide;  // rows lie at multiples of 16 bytes
};

Copies PutCopies(std::span<const CopyRowsArgs::Item> args, uint32_t kv_heads, Tape& tape) {
  const size_t lists = args.size() * kv_heads;
  CHECK_LE(lists, kMostLists);
  Copies copies{.rows = {}, .starts_bytes = lists * sizeof(uint32_t), .row_bytes = 0, .wide = true};
  std::vector<CopyItem> items;
  for (const CopyRowsArgs::Item& item : args) {
    const RowsView from = ViewOf(item.from), to = ViewOf(item.to);
    CHECK_EQ(from.row_bytes, to.row_bytes);
    CHECK(items.empty() || from.row_bytes == copies.row_bytes);
    copies.row_bytes = from.row_bytes;
    const auto bits = reinterpret_cast<uintptr_t>(from.base) |
                      reinterpret_cast<uintptr_t>(to.base) | from.row_bytes;
    CHECK_EQ(bits % sizeof(uint32_t), 0u);
    copies.wide = copies.wide && bits % sizeof(uint4) == 0;
    items.push_back({from, to, item.moves, item.stride, item.resolved, item.first_rows});
  }
  copies.rows = {tape.Params(items), kv_heads, static_cast<uint32_t>(lists)};
  return copies;
}

}  // namespace
}  // namespace sparsekv::cuda
