#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "base/limits.h"
#include "base/row_layout.h"
#include "kv_store/segment_layout.h"

// The memory over which one worker asks the store for rows, version 1, little-endian: one sealed
// memfd per attached worker, made for it by the store and forgotten with it.
//
//   GatherHeader, padded to a page
//   GatherEntry[kRingEntries]                  the request ring; written by the worker
//   atomic<uint64_t>[kMaxSlots]                completions, by slot; written by the store
//   GatherIndex[slots][kMaxRequestRows]        what each slot's request asks for; by the worker
//   staging: slots of SlotBytes, from a page boundary; written by the store
//
// A request is an entry, its position the number of entries posted before it. The worker fills a
// free slot's indices and the entry, then raises `posted`; the store writes the rows, then the
// slot's completion. Slots are fewer than ring entries and a slot has one request at a time, so the
// ring of a worker that keeps to this cannot overflow.
//
// Each side keeps what it relies on in private memory and believes nothing that lies here: the
// store copies a request to locals and checks the copy.
namespace sparsekv::kv_store {

inline constexpr uint64_t kGatherMagic = 0x5350'4b56'4741'5431;  // "SPKVGAT1" from the high byte
inline constexpr uint32_t kGatherVersion = 1;
inline constexpr uint32_t kRingEntries = 1024;
inline constexpr uint32_t kMaxSlots = kRingEntries;
inline constexpr uint32_t kMaxRequestRows = 256;  // enough to forget the cost of one request
inline constexpr size_t kDefaultStagingBytes = size_t{16} << 20;
static_assert(std::has_single_bit(kRingEntries));

struct GatherHeader {
  // Constant once a worker has the file.
  uint64_t magic;
  uint32_t version;
  uint32_t slots;
  uint64_t row_bytes;
  uint64_t store_boot_id;
  // Requests ever posted; by the worker.
  alignas(64) std::atomic<uint64_t> posted;
  // How many of the store's threads sleep; by the store. Not 0: a post rings the doorbell.
  alignas(64) std::atomic<uint32_t> sleepers;
  // Not 0: a completion rings the worker's eventfd; by the worker.
  alignas(64) std::atomic<uint32_t> waiting;
};
static_assert(sizeof(GatherHeader) == 256 && sizeof(GatherHeader) <= kPage);

// Rows of one sequence in one layer.
struct GatherEntry {
  std::atomic<uint64_t> owner;
  std::atomic<uint32_t> layer;
  std::atomic<uint32_t> slot;
  std::atomic<uint32_t> rows;  // indices of the slot that count
  uint32_t reserved[3];
};
static_assert(sizeof(GatherEntry) == 32 && kPage % sizeof(GatherEntry) == 0);

struct GatherIndex {
  std::atomic<uint32_t> block;
  std::atomic<uint32_t> generation;
  std::atomic<uint32_t> place;  // token in the block << 16 | KV head
};
static_assert(sizeof(GatherIndex) == 12);

// What became of a request. A completion is (position + 1) << 8 | status, so that none is 0 and
// none of an earlier request of the slot can be taken for it.
enum class GatherStatus : uint8_t {
  kDone = 1,      // the rows lie in the slot, in the order of the indices
  kBadEntry = 2,  // a layer, owner or number of rows that cannot be
  kBadIndex = 3,  // a block, KV head or token that the layout does not have
  kNotHeld = 4,   // a block that the table does not give to this owner at this generation
  kNotValid = 5,  // a row whose stamp is not this block's, or which is not complete
};
constexpr uint64_t MakeCompletion(uint64_t position, GatherStatus status) {
  return (position + 1) << 8 | static_cast<uint8_t>(status);
}

// Where everything lies, from what both sides know. Pure geometry.
struct GatherGeometry {
  uint32_t slots = 0;
  size_t row_bytes = 0;

  // As many slots as `staging_bytes` hold, at most kMaxSlots; 0 where not one fits.
  static GatherGeometry Of(size_t row_bytes, size_t staging_bytes) {
    GatherGeometry geometry = {.slots = 0, .row_bytes = row_bytes};
    const size_t slots = staging_bytes / geometry.slot_bytes();
    geometry.slots = slots < kMaxSlots ? static_cast<uint32_t>(slots) : kMaxSlots;
    return geometry;
  }
  size_t slot_bytes() const { return RoundUpToPage(kMaxRequestRows * row_bytes); }
  size_t entries_offset() const { return kPage; }
  size_t completions_offset() const {
    return entries_offset() + kRingEntries * sizeof(GatherEntry);
  }
  size_t indices_offset() const { return completions_offset() + kMaxSlots * sizeof(uint64_t); }
  size_t staging_offset() const {
    return indices_offset() + RoundUpToPage(slots * kMaxRequestRows * sizeof(GatherIndex));
  }
  size_t file_bytes() const { return staging_offset() + slots * slot_bytes(); }
};
static_assert(kRingEntries * sizeof(GatherEntry) % kPage == 0);
static_assert(kMaxSlots * sizeof(uint64_t) % kPage == 0);

// The parts of a mapping of the whole file.
class GatherView {
 public:
  GatherView() = default;
  GatherView(std::byte* data, const GatherGeometry& geometry) : data_(data), geometry_(geometry) {}

  const GatherGeometry& geometry() const { return geometry_; }
  GatherHeader& header() const { return *reinterpret_cast<GatherHeader*>(data_); }
  GatherEntry& entry(uint64_t position) const {
    return reinterpret_cast<GatherEntry*>(data_ +
                                          geometry_.entries_offset())[position % kRingEntries];
  }
  // REQUIRES of the next three: slot < slots.
  std::atomic<uint64_t>& completion(uint32_t slot) const {
    return reinterpret_cast<std::atomic<uint64_t>*>(data_ + geometry_.completions_offset())[slot];
  }
  GatherIndex* indices(uint32_t slot) const {
    return reinterpret_cast<GatherIndex*>(data_ + geometry_.indices_offset()) +
           size_t{slot} * kMaxRequestRows;
  }
  std::byte* staging(uint32_t slot) const {
    return data_ + geometry_.staging_offset() + slot * geometry_.slot_bytes();
  }

 private:
  std::byte* data_ = nullptr;
  GatherGeometry geometry_;
};

}  // namespace sparsekv::kv_store
