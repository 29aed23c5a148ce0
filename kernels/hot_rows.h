#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/limits.h"
#include "kernels/rows.h"

// Hot rows: token rows kept in slots on the device across steps, least recently used out first.
// Everything that decides where a row lies is here, in a form that a device can run without the
// host: fixed tables, no allocation, counts written beside the lists that they count.
namespace sparsekv {

inline constexpr uint32_t kNoToken = 0xFFFFFFFF;
inline constexpr uint16_t kNotHot = 0xFFFF;     // in a map: the token has no slot
inline constexpr uint32_t kMaxSlots = kNotHot;  // slots 0 .. kMaxSlots - 1

// What one slot of one KV head holds.
struct SlotMeta {
  uint32_t token = kNoToken;
  uint32_t last_use = 0;  // stamp of its last use; 0 = empty
};

// A map page tells for kBlockTokens tokens of a sequence in which slots they are:
// uint16 [set][kv_head][token].
struct MapLayout {
  uint32_t sets = 0;
  uint32_t kv_heads = 0;

  size_t set_entries() const { return size_t{kv_heads} * kBlockTokens; }
  size_t page_bytes() const { return set_entries() * sets * sizeof(uint16_t); }
};

// A row set: the slots of one sequence in one layer, or one half of its double buffer, which layers
// use in turn. KV heads have the same number of slots and nothing else in common. Owns nothing.
struct SlotTable {
  RowTable rows;                          // slot s is row s of the device's row blocks
  uint32_t slots = 0;                     // per KV head, <= kMaxSlots
  SlotMeta* meta = nullptr;               // [row blocks of the device][kv_heads][kBlockTokens]
  std::byte* const* map_pages = nullptr;  // [ceil(tokens / kBlockTokens)]
  const MapLayout* map_layout = nullptr;
  uint32_t set = 0;

  SlotMeta& Meta(uint32_t kv_head, uint32_t slot) const {
    const size_t block = rows.blocks[slot / kBlockTokens];
    return meta[(block * map_layout->kv_heads + kv_head) * kBlockTokens + slot % kBlockTokens];
  }
  uint16_t& SlotOf(uint32_t kv_head, uint32_t token) const {
    auto* page = reinterpret_cast<uint16_t*>(map_pages[token / kBlockTokens]);
    return page[set * map_layout->set_entries() + kv_head * kBlockTokens + token % kBlockTokens];
  }
};

// A row to bring: token `token` into slot `slot`.
struct RowMove {
  uint32_t token = 0;
  uint32_t slot = 0;
};

struct Resolved {
  uint32_t hits = 0;    // in their slots already, the current token included
  uint32_t useful = 0;  // of those, brought by this step's prediction
  uint32_t misses = 0;
};

// Finds a slot for every row of a list. Rows that have one keep it (hits). The others, in the order
// of the list, take the slots that were used longest ago, ties by the lower slot (misses); what lay
// there is forgotten. Slots with a stamp >= min(hit_stamp, miss_stamp) are in use by this step and
// never taken; a list that fits `slots` always finds enough.
//
// Stamps rise from step to step; what they mean inside a step is gpu_worker/row_fetcher.h's.
// REQUIRES: count <= slots; distinct tokens, each with a map page.
struct ResolveArgs {
  struct Item {
    SlotTable table;
    const uint32_t* rows = nullptr;  // [kv_heads, stride], tokens
    uint32_t count = 0;
    // A token whose row is being made by this step: it gets a slot like a miss, but is a hit.
    uint32_t current = kNoToken;
    bool clear = false;         // all slots are empty first: a double buffer's other layer
    uint32_t hit_stamp = 0;     // for rows that were there
    uint32_t miss_stamp = 0;    // for rows that are brought, and the current one
    uint32_t useful_stamp = 0;  // hits that carry it were brought by a prediction of this step
    uint32_t* slots = nullptr;  // [kv_heads, stride], out: slots[i] of rows[i]
    RowMove* misses = nullptr;  // [kv_heads, miss_stride], out, in the order of the list
    size_t miss_stride = 0;
    bool by_place = false;  // RowMove::token is the row's place in the list instead
    // Whether the map names the slots of misses at once. Else CopyAhead does, of each when its row
    // is there: until then whoever looks for the row finds none.
    bool map_misses = true;
    Resolved* resolved = nullptr;  // [kv_heads], out
  };
  uint32_t kv_heads = 0;
  size_t stride = 0;
  std::span<const Item> items;
};

// Forgets rows that were to be brought and were not: their slots are empty.
struct ForgetArgs {
  struct Item {
    SlotTable table;
    uint32_t kv_head = 0;
    std::span<const RowMove> moves;  // as Resolve gave them, with nothing resolved in between
  };
  std::span<const Item> items;
};

// Brings rows: copies each move's row, from the segment or from where it landed, into its slot.
struct CopyRowsArgs {
  struct Item {
    RowTable from;
    RowTable to;
    const RowMove* moves = nullptr;  // [kv_heads, stride]
    size_t stride = 0;
    const Resolved* resolved = nullptr;  // [kv_heads]: `misses` moves of each KV head
    // Where not 0, instead of all these: rows 0 .. first_rows - 1, into the same places.
    uint32_t first_rows = 0;

    uint32_t Rows(uint32_t kv_head) const {
      return first_rows ? first_rows : resolved[kv_head].misses;
    }
    RowMove Move(uint32_t kv_head, uint32_t i) const {
      return first_rows ? RowMove{i, i} : moves[kv_head * stride + i];
    }
  };
  uint32_t kv_heads = 0;
  std::span<const Item> items;
  struct CopyTimes* times = nullptr;  // copy_ahead.h; devices that copy on their own note them here
};

}  // namespace sparsekv
