#include <algorithm>
#include <vector>

#include "base/check.h"
#include "kernels/copy_ahead.h"
#include "kernels/cuda/begin_kernel.cuh"
#include "kernels/cuda/copy_times.cuh"
#include "kernels/cuda/cta.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/tables.cuh"

// Rows from the segment, which lies behind PCIe, or from where they landed, into slots. A read
// takes one to two microseconds over the link, so some 100 KiB must be on their way at any time:
// every lane issues kInFlight loads before it stores the first. What there is to copy is known on
// the device alone; every CTA counts it.
namespace sparsekv::cuda {
namespace {

constexpr uint32_t kThreads = 256;
constexpr uint32_t kWarps = kThreads / kWarpThreads;
constexpr uint32_t kInFlight = 8;  // loads of a lane
constexpr uint32_t kRowsPerWarp = kCopySliceRows / kWarps;
static_assert(kRowsPerWarp * kWarps == kCopySliceRows);
// CTAs of CopyAhead: a slice of 16 KiB each keeps a fast link busy, and a stop waits for no more
// than that. The other multiprocessors are the compute lane's.
constexpr int kAheadBlocks = 24;
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

// Fills starts [lists]: the rows before each list; returns all.
__device__ uint32_t CountRows(const RowList& rows, uint32_t* starts) {
  __shared__ uint32_t totals[kWarps];
  uint32_t before = 0;
  for (uint32_t first = 0; first < rows.lists; first += kThreads) {
    const uint32_t list = first + threadIdx.x;
    const uint32_t count = list < rows.lists ? rows.Count(list) : 0;
    const Running<uint32_t> running = RunningSum(count, totals);
    if (list < rows.lists) starts[list] = before + running.before;
    before += running.all;
  }
  __syncthreads();
  return before;
}

struct Way {
  const std::byte* from;
  std::byte* to;
};

// Of row `row` < all.
__device__ Way FindWay(const RowList& rows, const uint32_t* starts, uint32_t row) {
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
  return {item.from.Row(head, move.token), item.to.Row(head, move.slot)};
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
  const Way way = FindWay(rows, starts, first + min(LaneId(), count - 1));
  uint32_t row = LaneId() / units.per_row, unit = LaneId() % units.per_row;
  const uint32_t all = count * units.per_row;
  for (uint32_t done = 0; done < all; done += kInFlight * kWarpThreads) {
    Unit values[kInFlight];
    uint32_t from_row = row, from_unit = unit;
#pragma unroll
    for (uint32_t i = 0; i < kInFlight; ++i) {
      const std::byte* from = FromLane(way.from, from_row);
      if (from_row < count) values[i] = __ldcs(reinterpret_cast<const Unit*>(from) + from_unit);
      units.Advance(from_row, from_unit);
    }
#pragma unroll
    for (uint32_t i = 0; i < kInFlight; ++i) {
      std::byte* to = FromLane(way.to, row);
      if (row < count) reinterpret_cast<Unit*>(to)[unit] = values[i];
      units.Advance(row, unit);
    }
  }
}

// Bytes: 2 x row bytes per row, the half of it over PCIe where rows come from the segment. Warps
// take `batch` rows at a time, in turn over all multiprocessors.
template <typename Unit>
__global__ void __launch_bounds__(kThreads)
    CopyRowsKernel(RowList rows, uint32_t units_per_row, uint32_t batch, CopyTimes* const* times) {
  BeginKernel();
  extern __shared__ uint32_t starts[];
  const uint64_t begin = GlobalTime();
  const uint32_t all = CountRows(rows, starts);
  const uint32_t batches = all / batch + (all % batch > 0);
  const Units units(units_per_row);
  for (uint32_t b = WarpId() * gridDim.x + blockIdx.x; b < batches; b += gridDim.x * kWarps) {
    CopyWith<Unit>(rows, starts, units, b * batch, min(batch, all - b * batch));
  }
  if (blockIdx.x >= batches || *times == nullptr) return;  // no warp of this CTA had rows
  __syncthreads();
  if (threadIdx.x != 0) return;
  KeepEarlier(&(*times)->begin_ns, begin);
  KeepLater(&(*times)->end_ns, GlobalTime());
}

// The same bytes, by few CTAs that take slices as long as nobody said stop.
template <typename Unit>
__global__ void __launch_bounds__(kThreads)
    CopyAheadKernel(RowList rows, uint32_t units_per_row, CopyProgress* const* progress_at) {
  BeginKernel();
  constexpr uint32_t kNoSlice = 0xFFFFFFFF;
  extern __shared__ uint32_t starts[];
  __shared__ uint32_t next;
  CopyProgress* progress = *progress_at;
  const uint32_t all = CountRows(rows, starts);
  const Units units(units_per_row);
  bool copied = false;
  for (;;) {
    if (threadIdx.x == 0) {
      const bool stop = *reinterpret_cast<volatile uint32_t*>(&progress->stop) != 0;
      next = stop ? kNoSlice : atomicAdd(&progress->slices, 1);
    }
    __syncthreads();
    const uint64_t first = uint64_t{next} * kCopySliceRows;
    if (first >= all) break;
    const uint32_t count = min(kCopySliceRows, all - static_cast<uint32_t>(first));
    const uint32_t of_warp = WarpId() * kRowsPerWarp;
    if (of_warp < count) {
      CopyWith<Unit>(rows, starts, units, static_cast<uint32_t>(first) + of_warp,
                     min(kRowsPerWarp, count - of_warp));
    }
    copied = true;
    __syncthreads();
  }
  if (copied && threadIdx.x == 0) KeepLater(&progress->finished_ns, GlobalTime());
}

__global__ void StopKernel(CopyProgress* const* progress_at) {
  BeginKernel();
  CopyProgress* progress = *progress_at;
  progress->stopped_ns = GlobalTime();
  *reinterpret_cast<volatile uint32_t*>(&progress->stop) = 1;
}

__device__ void ForgetRow(const SlotsView& table, uint32_t head, RowMove move) {
  table.SlotOf(head, move.token) = kNotHot;
  table.Meta(head, move.slot) = SlotMeta{};
}

struct ForgetRestItem {
  SlotsView table;
  const RowMove* moves;
  uint64_t stride;
  const Resolved* resolved;
};

// A CTA per (KV head, item). Bytes: some 20 per row that is forgotten.
__global__ void __launch_bounds__(kThreads)
    ForgetRestKernel(const ForgetRestItem* items, const CopyProgress* const* progress) {
  BeginKernel();
  __shared__ uint32_t totals[kWarps];
  const uint32_t kv_heads = gridDim.x, head = blockIdx.x;
  const uint32_t list = blockIdx.y * kv_heads + head;
  uint32_t of_thread = 0;
  for (uint32_t l = threadIdx.x; l < list; l += kThreads) {
    of_thread += items[l / kv_heads].resolved[l % kv_heads].misses;
  }
  const uint64_t before = RunningSum(of_thread, totals).all;
  const uint64_t begun = uint64_t{(*progress)->slices} * kCopySliceRows;
  const ForgetRestItem& item = items[blockIdx.y];
  const uint32_t misses = item.resolved[head].misses;
  for (uint64_t i = (begun > before ? begun - before : 0) + threadIdx.x; i < misses;
       i += kThreads) {
    ForgetRow(item.table, head, item.moves[head * item.stride + i]);
  }
}

struct ForgetItem {
  SlotsView table;
  const RowMove* moves;  // in the step's parameters
  uint32_t count;
  uint32_t kv_head;
};

// A CTA per item.
__global__ void __launch_bounds__(kThreads) ForgetKernel(const ForgetItem* items) {
  BeginKernel();
  const ForgetItem& item = items[blockIdx.x];
  for (uint32_t i = threadIdx.x; i < item.count; i += kThreads) {
    ForgetRow(item.table, item.kv_head, item.moves[i]);
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

template <typename Unit>
void LaunchCopyRows(const Copies& copies, CopyTimes* times, Tape& tape) {
  const auto units = static_cast<uint32_t>(copies.row_bytes / sizeof(Unit));
  const uint32_t batch = std::clamp(kInFlight * kWarpThreads / units, 1u, kWarpThreads);
  tape.Launch(CopyRowsKernel<Unit>, dim3(static_cast<uint32_t>(tape.multiprocessors())),
              dim3(kThreads), copies.starts_bytes, copies.rows, units, batch, tape.Param(times));
}

template <typename Unit>
void LaunchCopyAhead(const Copies& copies, CopyProgress* progress, Tape& tape) {
  const auto units = static_cast<uint32_t>(copies.row_bytes / sizeof(Unit));
  const auto grid = static_cast<uint32_t>(std::min(kAheadBlocks, tape.multiprocessors()));
  tape.Launch(CopyAheadKernel<Unit>, dim3(grid), dim3(kThreads), copies.starts_bytes, copies.rows,
              units, tape.Param(progress));
}

}  // namespace

void CopyRows(const CopyRowsArgs& args, Tape& tape) {
  if (args.items.empty() || args.kv_heads == 0) return;
  const Copies copies = PutCopies(args.items, args.kv_heads, tape);
  copies.wide ? LaunchCopyRows<uint4>(copies, args.times, tape)
              : LaunchCopyRows<uint32_t>(copies, args.times, tape);
}

void CopyAhead(const CopyAheadArgs& args, Tape& tape) {
  if (args.items.empty() || args.kv_heads == 0) return;
  const Copies copies = PutCopies(args.items, args.kv_heads, tape);
  copies.wide ? LaunchCopyAhead<uint4>(copies, args.progress, tape)
              : LaunchCopyAhead<uint32_t>(copies, args.progress, tape);
}

void StopCopy(CopyProgress* progress, Tape& tape) {
  tape.Launch(StopKernel, dim3(1), dim3(1), 0, tape.Param(progress));
}

void ForgetRest(const ForgetRestArgs& args, Tape& tape) {
  if (args.items.empty() || args.kv_heads == 0) return;
  std::vector<ForgetRestItem> items;
  for (const ForgetRestArgs::Item& item : args.items) {
    items.push_back({ViewOf(item.table), item.moves, item.stride, item.resolved});
  }
  const dim3 grid(args.kv_heads, static_cast<uint32_t>(items.size()));
  tape.Launch(ForgetRestKernel, grid, dim3(kThreads), 0, tape.Params(items),
              tape.Param(args.progress));
}

void Forget(const ForgetArgs& args, Tape& tape) {
  if (args.items.empty()) return;
  std::vector<ForgetItem> items;
  for (const ForgetArgs::Item& item : args.items) {
    items.push_back({ViewOf(item.table), tape.Params(item.moves),
                     static_cast<uint32_t>(item.moves.size()), item.kv_head});
  }
  tape.Launch(ForgetKernel, dim3(static_cast<uint32_t>(items.size())), dim3(kThreads), 0,
              tape.Params(items));
}

}  // namespace sparsekv::cuda
