#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/cuda/cta.cuh"
#include "kernels/cuda/tables.cuh"

// Which slots of a KV head are taken for rows that have none, chosen by a CTA of kThreads threads:
// those used longest ago, by (last use, slot), the oldest first. All functions are called by the
// whole CTA; those that return or fill lists end with a barrier.
namespace sparsekv::cuda::victims {

inline constexpr uint32_t kThreads = 512;
inline constexpr uint32_t kWarps = kThreads / kWarpThreads;
inline constexpr uint32_t kCachedSlots = 16384;  // so many stamps are kept in shared memory
inline constexpr uint32_t kMost = 4096;          // victims that are chosen together
inline constexpr uint32_t kCounted = 256;  // so many are put in order by comparing all with all
inline constexpr uint32_t kSelectBits = 11;
inline constexpr uint32_t kSortBits = 8;

// The slots of the CTA's KV head.
struct HeadSlots {
  SlotsView table;
  uint32_t head;
  uint32_t in_use;  // slots with this stamp or a later one are no victims
  bool cached;      // table.slots <= kCachedSlots

  __device__ SlotMeta& Meta(uint32_t slot) const { return table.Meta(head, slot); }
  __device__ uint16_t& SlotOf(uint32_t token) const { return table.SlotOf(head, token); }
};

struct Work {
  uint32_t stamps[kCachedSlots];  // last uses by slot, where the head is cached
  uint16_t lists[2][kMost];
  union {
    uint32_t bins[1 << kSelectBits];
    uint32_t keys[kCounted];
    alignas(16) uint16_t places[1 << kSortBits][kWarps];
  };
  uint32_t totals[kWarps];
  uint32_t useful;
  uint32_t current_at;  // where in the list the current token is, if it misses; or kNoToken
  uint32_t lowest, highest;
  uint32_t bin, before_bin;
};
static_assert(sizeof(Work) <= 99 << 10, "the least that a CTA may have on any of our devices");

__device__ inline uint32_t Stamp(const HeadSlots& head, const Work& work, uint32_t slot) {
  return head.cached ? work.stamps[slot] : head.Meta(slot).last_use;
}

// A warp takes [first, end) of `count`, whole warps wide but for the last.
struct Piece {
  uint32_t first, end;
  __device__ explicit Piece(uint32_t count) {
    const uint32_t rounds = (count + kThreads - 1) / kThreads;
    first = min(count, WarpId() * rounds * kWarpThreads);
    end = min(count, first + rounds * kWarpThreads);
  }
};

__device__ inline uint32_t BitsOf(uint32_t value) { return 32 - __clz(static_cast<int>(value)); }

// The stamps that can be victims': work.lowest and work.highest.
__device__ inline void FindRange(const HeadSlots& head, Work& work) {
  if (threadIdx.x == 0) {
    work.lowest = 0xFFFFFFFF;
    work.highest = 0;
  }
  __syncthreads();
  uint32_t lowest = 0xFFFFFFFF, highest = 0;
  for (uint32_t slot = threadIdx.x; slot < head.table.slots; slot += kThreads) {
    const uint32_t stamp = Stamp(head, work, slot);
    if (stamp >= head.in_use) continue;
    lowest = min(lowest, stamp);
    highest = max(highest, stamp);
  }
  lowest = __reduce_min_sync(kWholeWarp, lowest);
  highest = __reduce_max_sync(kWholeWarp, highest);
  if (LaneId() == 0) {
    atomicMin(&work.lowest, lowest);
    atomicMax(&work.highest, highest);
  }
  __syncthreads();
}

struct Threshold {
  uint32_t stamp;  // all that are lower,
  uint32_t ties;   // and so many that are equal
};

// The stamp that the `count` oldest slots end with: radix select, kSelectBits at a time.
__device__ inline Threshold FindThreshold(const HeadSlots& head, uint32_t count, Work& work) {
  constexpr uint32_t kBinsEach = (1 << kSelectBits) / kThreads;
  const uint32_t lowest = work.lowest;
  uint32_t prefix = 0, left = count;
  for (uint32_t shift = BitsOf(work.highest - lowest); shift > 0;) {
    const uint32_t above = shift, width = min(shift, kSelectBits);
    shift -= width;
    for (uint32_t i = threadIdx.x; i < 1 << kSelectBits; i += kThreads) work.bins[i] = 0;
    __syncthreads();
    for (uint32_t slot = threadIdx.x; slot < head.table.slots; slot += kThreads) {
      const uint32_t stamp = Stamp(head, work, slot);
      const uint32_t key = stamp - lowest;
      if (stamp >= head.in_use || (uint64_t{key} >> above) != prefix) continue;
      atomicAdd(&work.bins[(key >> shift) & ((1 << width) - 1)], 1);
    }
    __syncthreads();
    uint32_t of_thread = 0;
    for (uint32_t i = 0; i < kBinsEach; ++i) of_thread += work.bins[threadIdx.x * kBinsEach + i];
    uint32_t before = RunningSum(of_thread, work.totals).before;
    for (uint32_t i = 0; i < kBinsEach; ++i) {
      const uint32_t bin = threadIdx.x * kBinsEach + i;
      if (before < left && left <= before + work.bins[bin]) {
        work.bin = bin;
        work.before_bin = before;
      }
      before += work.bins[bin];
    }
    __syncthreads();
    prefix = prefix << width | work.bin;
    left -= work.before_bin;
  }
  return {lowest + prefix, left};
}

// The `count` slots up to the threshold into work.lists[0], by slot.
__device__ inline void ListVictims(const HeadSlots& head, Threshold threshold, uint32_t count,
                                   Work& work) {
  const Piece piece(head.table.slots);
  uint32_t found = 0;  // lower ones in the low half, equal ones in the high half
  for (uint32_t slot = piece.first + LaneId(); slot < piece.end; slot += kWarpThreads) {
    const uint32_t stamp = Stamp(head, work, slot);
    found += stamp < threshold.stamp ? 1 : stamp == threshold.stamp ? 1 << 16 : 0;
  }
  const Running<uint32_t> running = RunningSumOfWarps(WarpSum(found), work.totals);
  // As the reference's CHECK: the caller's tables are broken, and nothing here would be right.
  if ((running.all & 0xFFFF) + min(running.all >> 16, threshold.ties) < count) __trap();
  uint32_t lower = running.before & 0xFFFF, equal = running.before >> 16;
  for (uint32_t first = piece.first; first < piece.end; first += kWarpThreads) {
    const uint32_t slot = first + LaneId();
    const bool here = slot < piece.end;
    const uint32_t stamp = here ? Stamp(head, work, slot) : 0;
    const bool is_lower = here && stamp < threshold.stamp;
    const bool is_equal = here && stamp == threshold.stamp;
    const uint32_t all_lower = __ballot_sync(kWholeWarp, is_lower);
    const uint32_t all_equal = __ballot_sync(kWholeWarp, is_equal);
    const uint32_t equal_before = equal + __popc(all_equal & LanesBefore());
    if (is_lower || (is_equal && equal_before < threshold.ties)) {
      const uint32_t lower_before = lower + __popc(all_lower & LanesBefore());
      work.lists[0][lower_before + min(equal_before, threshold.ties)] = static_cast<uint16_t>(slot);
    }
    lower += __popc(all_lower);
    equal += __popc(all_equal);
  }
  __syncthreads();
}

// Few victims from work.lists[0] into work.lists[1]: each counts those that come before it.
__device__ inline void SortFew(const HeadSlots& head, uint32_t count, Work& work) {
  constexpr uint32_t kEach = kThreads / kCounted;  // threads of a victim
  static_assert(kEach == 2);
  if (threadIdx.x < count) work.keys[threadIdx.x] = Stamp(head, work, work.lists[0][threadIdx.x]);
  __syncthreads();
  const uint32_t mine = threadIdx.x / kEach;
  uint32_t before = 0;
  if (mine < count) {
    const uint32_t key = work.keys[mine];
    for (uint32_t i = threadIdx.x % kEach; i < count; i += kEach) {
      before += work.keys[i] < key || (work.keys[i] == key && i < mine);
    }
  }
  before += __shfl_xor_sync(kWholeWarp, before, 1);
  if (mine < count && threadIdx.x % kEach == 0) work.lists[1][before] = work.lists[0][mine];
  __syncthreads();
}

// Where the values of each digit begin, by warp: counts in work.places become places.
__device__ inline void CountsToPlaces(Work& work) {
  constexpr uint32_t kEach = (1 << kSortBits) * kWarps / kThreads;
  static_assert(kEach * sizeof(uint16_t) == sizeof(uint4));
  uint4& mine = reinterpret_cast<uint4*>(work.places)[threadIdx.x];
  const uint4 counts = mine;
  uint16_t places[kEach];
  memcpy(places, &counts, sizeof(counts));
  uint32_t sum = 0;
#pragma unroll
  for (uint32_t i = 0; i < kEach; ++i) sum += places[i];
  uint32_t before = RunningSum(sum, work.totals).before;
#pragma unroll
  for (uint32_t i = 0; i < kEach; ++i) {
    const uint32_t count = places[i];
    places[i] = static_cast<uint16_t>(before);
    before += count;
  }
  uint4 begins;
  memcpy(&begins, places, sizeof(begins));
  mine = begins;
  __syncthreads();
}

// One pass of a stable radix sort: by kSortBits of the stamps from `shift` on.
__device__ inline void SortPass(const HeadSlots& head, const uint16_t* from, uint16_t* to,
                                uint32_t count, uint32_t shift, Work& work) {
  constexpr uint32_t kNoDigit = 1 << kSortBits;
  const Piece piece(count);
  reinterpret_cast<uint4*>(work.places)[threadIdx.x] = uint4{};
  __syncthreads();
  for (int pass = 0; pass < 2; ++pass) {  // counts, then places
    const bool placing = pass == 1;
    for (uint32_t first = piece.first; first < piece.end; first += kWarpThreads) {
      const bool here = first + LaneId() < piece.end;
      const uint32_t slot = here ? from[first + LaneId()] : 0;
      const uint32_t key = Stamp(head, work, slot) - work.lowest;
      const uint32_t digit = here ? (key >> shift) % kNoDigit : kNoDigit;
      const uint32_t peers = __match_any_sync(kWholeWarp, digit);
      const uint32_t before = __popc(peers & LanesBefore());
      const uint32_t place = here ? work.places[digit][WarpId()] : 0;
      if (here && placing) to[place + before] = static_cast<uint16_t>(slot);
      __syncwarp();
      if (here && before == 0) work.places[digit][WarpId()] = place + __popc(peers);
      __syncwarp();
    }
    __syncthreads();
    if (!placing) CountsToPlaces(work);
  }
}

// The `count` slots used longest ago, by (last use, slot).
__device__ inline uint16_t* Find(const HeadSlots& head, uint32_t count, Work& work) {
  FindRange(head, work);
  const Threshold threshold = FindThreshold(head, count, work);
  ListVictims(head, threshold, count, work);
  const uint32_t bits = BitsOf(threshold.stamp - work.lowest);
  if (bits == 0) return work.lists[0];
  if (count <= kCounted) {
    SortFew(head, count, work);
    return work.lists[1];
  }
  uint32_t list = 0;
  for (uint32_t shift = 0; shift < bits; shift += kSortBits, list ^= 1) {
    SortPass(head, work.lists[list], work.lists[list ^ 1], count, shift, work);
  }
  return work.lists[list];
}

}  // namespace sparsekv::cuda::victims
