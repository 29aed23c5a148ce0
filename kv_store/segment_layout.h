#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/limits.h"
#include "base/row_layout.h"

// The fixed layout of the memory that the store's processes share, version 1, little-endian.
//
//   meta   SegmentHeader, padded to a page; then BlockHeader[pools][blocks].
//          Written by the store alone; workers hold it read-only.
//   rows   one file per pool: RowLayout's pool, then RowStamp[layers][blocks], from a page
//   boundary.
//          Written by the one worker that is attached to the pool.
//
// Every field that changes while another process may look is atomic, and one word of each record,
// its tag, is written last with release order and read first with acquire order. A generation is
// never used twice for a block, so a tag that is unchanged after the fields were copied proves the
// copy.
namespace sparsekv::kv_store {

inline constexpr uint64_t kSegmentMagic = 0x5350'4b56'5345'4731;  // "SPKVSEG1" from the high byte
inline constexpr uint32_t kSegmentVersion = 1;
inline constexpr size_t kPage = RowLayout::kPage;

inline constexpr uint32_t kMaxPools = 64;         // GPUs of a host
inline constexpr uint32_t kMaxKvHeads = 256;      // of a rank
inline constexpr uint32_t kMaxBlocks = 1u << 22;  // of a pool: 268 million tokens
static_assert(uint64_t{kMaxLayers} * kMaxKvHeads * kMaxBlocks * kBlockTokens <= uint64_t{1} << 46);
static_assert(uint64_t{kMaxHeadDim} * 2 * 4 * kMaxPools <= uint64_t{1} << 17);  // sizes stay < 2^63

struct SegmentHeader {
  std::atomic<uint64_t> magic;  // written last, once
  uint32_t version;
  uint32_t pools;
  uint64_t segment_id;   // random, never 0: the identity of the memory
  uint64_t fingerprint;  // of the model and everything that decides a row's values
  uint32_t layers;
  uint32_t kv_heads;
  uint32_t head_dim;
  uint32_t dtype;   // DType
  uint32_t blocks;  // per pool
  uint32_t reserved;
  std::atomic<uint64_t> store_boot_id;  // of the store that serves now; changes at its restart
};
static_assert(sizeof(SegmentHeader) == 64);
static_assert(sizeof(SegmentHeader) <= kPage);

enum class BlockState : uint32_t {
  kFree = 0,        // on the free list
  kAllocating = 1,  // being filled in; after a crash it belongs to nobody
  kHeld = 2,        // granted
};

// One row block of one pool: who holds it, as which part of the grant.
struct BlockHeader {
  std::atomic<uint64_t> tag;    // generation << 32 | BlockState
  std::atomic<uint64_t> owner;  // a sequence, as the coordinator names it; never 0 when held
  std::atomic<uint64_t> fingerprint;
  std::atomic<uint64_t> store_boot_id;   // of the store that granted it
  std::atomic<uint32_t> first_position;  // index in the grant * kBlockTokens
  std::atomic<uint32_t>
      grant_blocks;  // blocks of the whole grant: fewer found = a half-done change
  uint32_t reserved[6];
};
static_assert(sizeof(BlockHeader) == 64 && kPage % sizeof(BlockHeader) == 0);

// One row block in one layer: whose rows lie there, and how many are complete.
struct RowStamp {
  std::atomic<uint64_t> tag;  // generation << 32 | rows_valid; 0 while the fields below change
  std::atomic<uint64_t> owner;
  std::atomic<uint64_t> fingerprint;
  std::atomic<uint32_t> layer;
  std::atomic<uint32_t> first_position;
};
static_assert(sizeof(RowStamp) == 32 && kPage % sizeof(RowStamp) == 0);
static_assert(std::atomic<uint64_t>::is_always_lock_free);

constexpr uint64_t MakeTag(uint32_t generation, uint32_t low) {
  return uint64_t{generation} << 32 | low;
}
constexpr uint32_t TagGeneration(uint64_t tag) { return static_cast<uint32_t>(tag >> 32); }
constexpr uint32_t TagLow(uint64_t tag) { return static_cast<uint32_t>(tag); }

constexpr size_t RoundUpToPage(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

constexpr size_t MetaBytes(uint32_t pools, uint32_t blocks) {
  return kPage + RoundUpToPage(size_t{pools} * blocks * sizeof(BlockHeader));
}
inline size_t RowsBytes(const RowLayout& layout) {
  return layout.pool_bytes() +
         RoundUpToPage(size_t{layout.layers} * layout.blocks * sizeof(RowStamp));
}

// The header and the block table in a mapping of meta.
inline SegmentHeader* HeaderOf(std::byte* meta) { return reinterpret_cast<SegmentHeader*>(meta); }
inline BlockHeader* BlocksOf(std::byte* meta) {
  return reinterpret_cast<BlockHeader*>(meta + kPage);
}
// The stamps in a mapping of rows.
inline RowStamp* StampsOf(std::byte* rows, const RowLayout& layout) {
  return reinterpret_cast<RowStamp*>(rows + layout.pool_bytes());
}

inline const RowStamp* StampsOf(const std::byte* rows, const RowLayout& layout) {
  return reinterpret_cast<const RowStamp*>(rows + layout.pool_bytes());
}

// A record's fields, copied while its owner may be changing them: good if both tags are the one
// that is expected. Tags never come back, so a change in between shows in the second.
struct BlockFacts {
  uint64_t tag, owner, fingerprint;
  uint32_t first_position;
  uint64_t tag_after;
};
struct StampFacts {
  uint64_t tag, owner, fingerprint;
  uint32_t layer, first_position;
  uint64_t tag_after;
};
// Braced initialisers run in order, and acquire order keeps the last load behind the others.
inline BlockFacts ReadBlock(const BlockHeader& shared) {
  constexpr auto kAcquire = std::memory_order_acquire;
  return {.tag = shared.tag.load(kAcquire),
          .owner = shared.owner.load(kAcquire),
          .fingerprint = shared.fingerprint.load(kAcquire),
          .first_position = shared.first_position.load(kAcquire),
          .tag_after = shared.tag.load(std::memory_order_relaxed)};
}
inline StampFacts ReadStamp(const RowStamp& shared) {
  constexpr auto kAcquire = std::memory_order_acquire;
  return {.tag = shared.tag.load(kAcquire),
          .owner = shared.owner.load(kAcquire),
          .fingerprint = shared.fingerprint.load(kAcquire),
          .layer = shared.layer.load(kAcquire),
          .first_position = shared.first_position.load(kAcquire),
          .tag_after = shared.tag.load(std::memory_order_relaxed)};
}

// What a header says, copied out of shared memory and bounds-checked: every field lies within the
// limits. `valid` is false if magic, version or a field does not.
struct SegmentFacts {
  bool valid = false;
  uint64_t segment_id = 0;
  uint64_t fingerprint = 0;
  uint32_t pools = 0;
  RowLayout layout;
};
SegmentFacts ReadFacts(const SegmentHeader& header);

// Fills in a zeroed header, magic last. REQUIRES: facts within the limits.
void WriteFacts(const SegmentFacts& facts, SegmentHeader* header);

// Whether a segment of this shape can exist at all.
bool WithinLimits(const RowLayout& layout, uint32_t pools);

}  // namespace sparsekv::kv_store
