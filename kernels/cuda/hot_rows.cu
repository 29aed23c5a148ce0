#include <vector>

#include "base/check.h"
#include "kernels/cuda/begin_kernel.cuh"
#include "kernels/cuda/cta.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/tables.cuh"
#include "kernels/cuda/victims.cuh"

// Resolve: a CTA per (item, KV head). What the reference does one miss after the other is done for
// all of them together: the hits are stamped, the misses numbered in the order of the list, as many
// victims chosen by (last use, slot), put in that order and handed out.
namespace sparsekv::cuda {
namespace {

using victims::kThreads;
using victims::Piece;
using victims::Stamp;
using victims::Work;
constexpr uint32_t kBatch = 4;  // loads of a thread that do not wait for each other

struct ResolveItem {
  SlotsView table;
  const uint32_t* rows;
  uint32_t* slots;
  uint64_t stride;  // of both
  RowMove* misses;
  uint64_t miss_stride;
  Resolved* resolved;
  uint32_t count;
  uint32_t current;
  uint32_t clear;
  uint32_t hit_stamp;
  uint32_t miss_stamp;
  uint32_t useful_stamp;
  uint32_t by_place;
  uint32_t map_misses;
};

// The CTA's KV head.
struct Head : victims::HeadSlots {
  const uint32_t* rows;
  uint32_t* slots;
  RowMove* misses;
  uint32_t count;
  uint32_t hit_stamp;
  uint32_t miss_stamp;
  bool by_place;
  bool map_misses;

  __device__ Head(const ResolveItem& item, uint32_t kv_head)
      : HeadSlots{item.table, kv_head, min(item.hit_stamp, item.miss_stamp),
                  item.table.slots <= victims::kCachedSlots},
        rows(item.rows + kv_head * item.stride),
        slots(item.slots + kv_head * item.stride),
        misses(item.misses + kv_head * item.miss_stride),
        count(item.count),
        hit_stamp(item.hit_stamp),
        miss_stamp(item.miss_stamp),
        by_place(item.by_place != 0),
        map_misses(item.map_misses != 0) {}
};

// Fills work.stamps, and empties all slots where asked to.
__device__ void ReadSlots(const Head& head, bool clear, Work& work) {
  for (uint32_t first = threadIdx.x; first < head.table.slots; first += kThreads * kBatch) {
    SlotMeta metas[kBatch];
#pragma unroll
    for (uint32_t b = 0; b < kBatch; ++b) {
      const uint32_t slot = first + b * kThreads;
      if (slot < head.table.slots) metas[b] = head.Meta(slot);
    }
#pragma unroll
    for (uint32_t b = 0; b < kBatch; ++b) {
      const uint32_t slot = first + b * kThreads;
      if (slot >= head.table.slots) continue;
      if (clear) {
        if (metas[b].token != kNoToken) head.SlotOf(metas[b].token) = kNotHot;
        head.Meta(slot) = SlotMeta{};
      }
      if (head.cached) work.stamps[slot] = clear ? 0 : metas[b].last_use;
    }
  }
}

// Looks up the list; returns how many of the warp's piece have no slot.
__device__ uint32_t FindSlots(const Head& head, uint32_t current, Work& work) {
  const Piece piece(head.count);
  uint32_t absent = 0;
  for (uint32_t first = piece.first + LaneId(); first < piece.end; first += kWarpThreads * kBatch) {
    uint32_t tokens[kBatch], slots[kBatch];
#pragma unroll
    for (uint32_t b = 0; b < kBatch; ++b) {
      const uint32_t i = first + b * kWarpThreads;
      tokens[b] = i < piece.end ? head.rows[i] : kNoToken;
    }
#pragma unroll
    for (uint32_t b = 0; b < kBatch; ++b) {
      if (first + b * kWarpThreads < piece.end) slots[b] = head.SlotOf(tokens[b]);
    }
#pragma unroll
    for (uint32_t b = 0; b < kBatch; ++b) {
      const uint32_t i = first + b * kWarpThreads;
      if (i >= piece.end) continue;
      head.slots[i] = slots[b];
      if (slots[b] != kNotHot) continue;
      ++absent;
      if (tokens[b] == current) work.current_at = i;
    }
  }
  return WarpSum(absent);
}

// Stamps the slots that were found.
__device__ void StampHits(const Head& head, uint32_t useful_stamp, Work& work) {
  uint32_t useful = 0;
  for (uint32_t first = threadIdx.x; first < head.count; first += kThreads * kBatch) {
    uint32_t slots[kBatch];
#pragma unroll
    for (uint32_t b = 0; b < kBatch; ++b) {
      const uint32_t i = first + b * kThreads;
      slots[b] = i < head.count ? head.slots[i] : kNotHot;
    }
#pragma unroll
    for (uint32_t b = 0; b < kBatch; ++b) {
      if (slots[b] == kNotHot) continue;
      useful += Stamp(head, work, slots[b]) == useful_stamp;
      if (head.cached) work.stamps[slots[b]] = head.hit_stamp;
      head.Meta(slots[b]).last_use = head.hit_stamp;
    }
  }
  useful = WarpSum(useful);
  if (LaneId() == 0 && useful > 0) atomicAdd(&work.useful, useful);
}

// Places in the list of the first `count` rows without a slot, into `absent`; `before` of them are
// in the pieces of the warps before. Returns how many are in this warp's.
__device__ uint32_t ListAbsent(const Head& head, uint32_t before, uint32_t count,
                               uint16_t* absent) {
  const Piece piece(head.count);
  uint32_t next = before;
  for (uint32_t first = piece.first; first < piece.end && next < count; first += kWarpThreads) {
    const uint32_t i = first + LaneId();
    const bool is_absent = i < piece.end && head.slots[i] == kNotHot;
    const uint32_t all = __ballot_sync(kWholeWarp, is_absent);
    const uint32_t place = next + __popc(all & LanesBefore());
    if (is_absent && place < count) absent[place] = static_cast<uint16_t>(i);
    next += __popc(all);
  }
  return min(next, count) - min(before, count);
}

// Gives slot oldest[v] to the row at absent[v]. `done`: rows that earlier rounds served.
__device__ void HandOut(const Head& head, const uint16_t* absent, const uint16_t* oldest,
                        uint32_t count, uint32_t done, Work& work) {
  for (uint32_t v = threadIdx.x; v < count; v += kThreads) {
    const uint32_t i = absent[v], slot = oldest[v], token = head.rows[i];
    SlotMeta& meta = head.Meta(slot);
    if (meta.token != kNoToken) head.SlotOf(meta.token) = kNotHot;
    meta = {.token = token, .last_use = head.miss_stamp};
    if (head.cached) work.stamps[slot] = head.miss_stamp;
    if (head.map_misses) head.SlotOf(token) = static_cast<uint16_t>(slot);
    head.slots[i] = slot;
    if (i != work.current_at) {
      head.misses[done + v - (i > work.current_at ? 1 : 0)] = {head.by_place ? i : token, slot};
    }
  }
}

// Bytes: per row of the list 4 + 2 in and 4 out, per slot 8 in, per miss some 40; all from L2, so
// that the time is that of some ten dependent accesses. More than victims::kMost misses
// take rounds: the victims of one carry miss_stamp and are none in the next. Slots beyond
// kCachedSlots cost every round some six passes over 8 bytes per slot.
__global__ void __launch_bounds__(kThreads, 2) ResolveKernel(const ResolveItem* items) {
  BeginKernel();
  extern __shared__ __align__(16) unsigned char memory[];
  Work& work = *reinterpret_cast<Work*>(memory);
  const ResolveItem& item = items[blockIdx.y];
  const Head head(item, blockIdx.x);
  if (threadIdx.x == 0) {
    work.useful = 0;
    work.current_at = kNoToken;
  }
  __syncthreads();
  if (item.clear || head.cached) ReadSlots(head, item.clear, work);
  if (item.clear) __syncthreads();
  uint32_t absent = FindSlots(head, item.current, work);
  __syncthreads();
  StampHits(head, item.useful_stamp, work);
  uint32_t done = 0;
  for (;;) {
    const Running<uint32_t> left = RunningSumOfWarps(absent, work.totals);
    if (left.all == 0) break;
    const uint32_t count = min(left.all, victims::kMost);
    const uint16_t* oldest = victims::Find(head, count, work);
    uint16_t* places = oldest == work.lists[0] ? work.lists[1] : work.lists[0];
    absent -= ListAbsent(head, left.before, count, places);
    __syncthreads();
    HandOut(head, places, oldest, count, done, work);
    done += count;
  }
  if (threadIdx.x == 0) {
    const uint32_t made = work.current_at != kNoToken;
    item.resolved[blockIdx.x] = {
        .hits = head.count - done + made, .useful = work.useful, .misses = done - made};
  }
}

}  // namespace

void Resolve(const ResolveArgs& args, Tape& tape) {
  if (args.items.empty() || args.kv_heads == 0) return;
  std::vector<ResolveItem> items;
  for (const ResolveArgs::Item& item : args.items) {
    CHECK_LE(item.count, item.table.slots);
    CHECK_LE(item.table.slots, kMaxSlots);
    items.push_back({.table = ViewOf(item.table),
                     .rows = item.rows,
                     .slots = item.slots,
                     .stride = args.stride,
                     .misses = item.misses,
                     .miss_stride = item.miss_stride,
                     .resolved = item.resolved,
                     .count = item.count,
                     .current = item.current,
                     .clear = item.clear,
                     .hit_stamp = item.hit_stamp,
                     .miss_stamp = item.miss_stamp,
                     .useful_stamp = item.useful_stamp,
                     .by_place = item.by_place,
                     .map_misses = item.map_misses});
  }
  const dim3 grid(args.kv_heads, static_cast<uint32_t>(items.size()));
  tape.Launch(ResolveKernel, grid, dim3(kThreads), sizeof(Work), tape.Params(items));
}

}  // namespace sparsekv::cuda
