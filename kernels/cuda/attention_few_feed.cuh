#pragma once

#include <cuda_pipeline_primitives.h>

#include "kernels/cuda/attention_few.cuh"
#include "kernels/cuda/copy_times.cuh"
#include "kernels/cuda/load_shared.cuh"
#include "kernels/cuda/read_once.cuh"

// Rows of 16-bit values from memory to shared memory, past the registers, for one warp each.
namespace sparsekv::cuda {
namespace {

constexpr uint32_t kTileRows = 16;

template <uint32_t kHeadDim>
struct FewShape {
  static_assert(kHeadDim % 32 ==
                0);  // whole groups of eight 16-byte chunks, which swizzling permutes
  static constexpr uint32_t kWarps = kHeadDim > 128 ? 2 : 4;
  static constexpr uint32_t kStages = kHeadDim > 64 ? 2 : 4;
  static constexpr uint32_t kRowBytes = kHeadDim * 4;  // K and V
  static constexpr uint32_t kTileBytes = kTileRows * kRowBytes;
  static constexpr uint32_t kRingBytes = kStages * kTileBytes;  // of one warp
  static constexpr uint32_t kChunks = kRowBytes / 16;
};

// Where a chunk of 16 bytes lies in a tile: eight rows at the same chunk are in different banks.
template <uint32_t kHeadDim>
__device__ uint32_t ChunkAt(uint32_t row, uint32_t chunk) {
  return row * FewShape<kHeadDim>::kRowBytes + ((chunk ^ (row & 7)) << 4);
}

__device__ inline void CopyChunk(uint32_t to, const std::byte* from, bool there) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(to),
               "l"(from), "r"(there ? 16 : 0), "l"(ReadOnce())
               : "memory");
}

// The tiles of one warp, over all units of its CTA, one after the other: each is asked for as soon
// as there is room, and where the next one's rows lie is found before that.
//
// kOffloaded: of some items. Rows that have no slot come from the segment, over the link, and the
// warp leaves them in the landing when their tile is there. Nobody waits for them but the warp that
// adds them.
template <uint32_t kHeadDim, bool kOffloaded>
class RowFeed {
 public:
  using Shape = FewShape<kHeadDim>;

  __device__ RowFeed(const FewCall& call, const Place& place, uint32_t units, uint32_t ring)
      : call_(call), place_(place), units_(units), ring_(ring) {
    FindTile();
    for (uint32_t stage = 0; stage < Shape::kStages; ++stage) {
      Locate();
      Fetch(stage);
    }
  }

  // Before each Fetch, long enough after the one before that the tokens have arrived.
  __device__ void Locate() {
    if constexpr (kOffloaded) return LocateOffloaded();
    row_ = token_ == kNone ? nullptr : RowOf(blocks_[token_ / kBlockTokens]);
  }

  // Asks for the tile, or for nothing after the last one.
  __device__ void Fetch(uint32_t stage) {
    const uint32_t lane = threadIdx.x % kWarp;
    const uint32_t tile = ring_ + stage * Shape::kTileBytes;
    if (there_is_) {
#pragma unroll
      for (uint32_t i = 0; i < kTileRows * Shape::kChunks / kWarp; ++i) {
        const uint32_t row = (i * kWarp + lane) / Shape::kChunks;
        const uint32_t chunk = (i * kWarp + lane) % Shape::kChunks;
        const auto at = __shfl_sync(kAllLanes, reinterpret_cast<unsigned long long>(row_), row);
        const auto* from = at ? reinterpret_cast<const std::byte*>(at) + chunk * 16 : base_;
        CopyChunk(tile + ChunkAt<kHeadDim>(row, chunk), from, at != 0);
      }
    }
    __pipeline_commit();
    if constexpr (kOffloaded) {
      if (located_ != 0) times_.Begin();
      absent_ = (absent_ & ~(kTileMask << stage * kTileRows)) | located_ << stage * kTileRows;
    }
    FindTile();
  }

  // Leaves what of the stage's tile, which is there, came from the segment. It is tile number
  // `tile` of the place's list.
  __device__ void Land(uint32_t stage, const Place& place, uint32_t tile) {
    const auto absent = static_cast<uint32_t>(absent_ >> stage * kTileRows & kTileMask);
    if (absent == 0) return;
    times_.End();
    const FewItem& item = call_.items[place.item];
    const RowsView& landing = item.offloaded->landing;
    if (landing.blocks == nullptr || !item.offloaded->kept) return;
    std::byte* to = landing.Row(place.head, place.split * item.split_entries + tile * kTileRows);
    const uint32_t lane = threadIdx.x % kWarp, from = ring_ + stage * Shape::kTileBytes;
#pragma unroll 4
    for (uint32_t i = 0; i < kTileRows * Shape::kChunks / kWarp; ++i) {
      const uint32_t row = (i * kWarp + lane) / Shape::kChunks;
      const uint32_t chunk = (i * kWarp + lane) % Shape::kChunks;
      if ((absent >> row & 1) == 0) continue;
      const uint4 value = LoadShared(from + ChunkAt<kHeadDim>(row, chunk));
      reinterpret_cast<uint4*>(to + row * Shape::kRowBytes)[chunk] = value;
    }
  }

  // When all tiles have landed.
  __device__ void NoteTimes() const {
    if (threadIdx.x % kWarp == 0) times_.Note(call_.times);
  }

 private:
  static constexpr uint32_t kNone = ~0u;
  static constexpr uint64_t kTileMask = (1u << kTileRows) - 1;
  static_assert(Shape::kStages * kTileRows <= 64);

  // Of the open unit's KV head, in the block.
  __device__ const std::byte* RowOf(uint32_t block) const {
    return base_ + block * block_stride_ + (token_ % kBlockTokens) * Shape::kRowBytes;
  }

  __device__ void LocateOffloaded() {
    row_ = nullptr;
    bool absent = false;
    if (token_ != kNone) {
      const uint32_t block = blocks_[token_ / kBlockTokens];
      const uint32_t slot = offloaded_ ? offloaded_->SlotOf(head_, token_) : kNotHot;
      absent = offloaded_ && slot == kNotHot;
      row_ = slot == kNotHot ? RowOf(block) : offloaded_->hot.rows.Row(head_, slot);
    }
    located_ = __ballot_sync(kAllLanes, absent) & kTileMask;
    __syncwarp();  // what this lane has seen of a row, those that ask for it have too
  }

  __device__ void FindTile() {
    there_is_ = false;
    token_ = kNone;
    while (tile_ * kTileRows >= entries_) {
      if (units_ == 0) return;
      --units_;
      OpenUnit();
    }
    there_is_ = true;
    const uint32_t entry = tile_ * kTileRows + threadIdx.x % kTileRows;
    if (entry < entries_) token_ = selection_ ? selection_[entry] : first_ + entry;
    tile_ += Shape::kWarps;
  }

  __device__ void OpenUnit() {
    place_.Find(call_);
    const FewItem& item = call_.items[place_.item];
    entries_ = SplitEntries(item, place_.split);
    first_ = place_.split * item.split_entries;
    base_ = item.rows.base + uint64_t{place_.head} * item.rows.head_stride;
    blocks_ = item.rows.blocks;
    block_stride_ = item.rows.block_stride;
    selection_ = item.selection;
    if (selection_) selection_ += place_.head * item.selection_stride + first_;
    if constexpr (kOffloaded) {
      offloaded_ = item.offloaded;
      head_ = place_.head;
    }
    tile_ = threadIdx.x / kWarp;
    place_.Advance(call_, item.splits);
  }

  const FewCall& call_;
  Place place_;     // of the unit after the one that is open
  uint32_t units_;  // still to open
  uint32_t ring_;
  // The open unit.
  const std::byte* base_ = nullptr;
  const uint32_t* blocks_ = nullptr;
  uint64_t block_stride_ = 0;
  const uint32_t* selection_ = nullptr;  // from the split's first entry
  uint32_t first_ = 0;
  uint32_t entries_ = 0;
  uint32_t tile_ = 0;
  // The next tile: lanes n and n + 16 have its row n.
  bool there_is_ = false;
  uint32_t token_ = kNone;
  const std::byte* row_ = nullptr;
  // kOffloaded:
  const OffloadedView* offloaded_ = nullptr;  // the open unit's item's
  uint32_t head_ = 0;
  uint64_t located_ = 0;  // a bit per row of the next tile: it has no slot
  uint64_t absent_ = 0;   // those of each stage
  ReadTimes times_;
};

}  // namespace
}  // namespace sparsekv::cuda
