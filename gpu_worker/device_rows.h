#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/slots.h"
#include "gpu_worker/device_tables.h"
#include "gpu_worker/page_pool.h"
#include "kernels/hot_rows.h"

namespace sparsekv {

enum class RowPlacement { kResident, kOffload };

class DeviceRows;

// How much the inputs of a sequence's consecutive layers have differed lately (kernels/predict.h).
struct LayerDrift {
  float* values = nullptr;  // [layers, hidden_size]
  uint32_t steps = 0;       // that it has followed
};

// The device's share of one sequence's rows: row sets, one per layer (or, without hot rows, two
// that layers use in turn). Resident: a set has a row for every token, in its place. Offloaded: a
// set has `slots` slots per KV head, and a map says which tokens are in them. Dense and offloaded:
// one set with a row for every token, which the layers fill in turn.
struct RowSets {
  DeviceRows* device = nullptr;
  RowPlacement placement = RowPlacement::kOffload;
  uint32_t sets = 0;
  uint32_t slots = 0;                 // per KV head and set; resident: tokens
  std::vector<uint32_t> blocks;       // [sets][slots / kBlockTokens]
  std::vector<std::byte*> map_pages;  // offloaded only
  LayerDrift* drift = nullptr;        // where predictions are made; the device's
  // The two vectors as operations read them.
  const uint32_t* block_table = nullptr;
  std::byte* const* map_table = nullptr;

  bool resident() const { return placement == RowPlacement::kResident; }
  // Whether layers share sets: then a set is empty when its layer comes.
  bool shared() const;
  size_t bytes() const;  // of the device: rows, slots, maps
  RowTable Rows(uint32_t layer) const;
  std::byte* ResidentBlock(uint32_t layer, uint32_t block) const;  // of 64 tokens, all KV heads
  SlotTable Slots(uint32_t layer) const;
};

// The row memory of a device: blocks of 64 rows of every KV head in one layer, what lies in their
// slots, and map pages. Owned by the device thread. Memory is the arena's.
class DeviceRows {
 public:
  struct Options {
    Backend* backend = nullptr;
    uint32_t layers = 0;
    RowLayout layout;           // of the device's blocks: one layer
    std::byte* rows = nullptr;  // layout.pool_bytes()
    SlotMeta* meta = nullptr;   // [layout.blocks][kv_heads][kBlockTokens]
    SlotMeta* empty_meta =
        nullptr;  // of one block: no token in any slot; the constructor writes it
    std::byte* map_pages = nullptr;
    uint32_t map_page_count = 0;
    float* drift = nullptr;   // [max_sequences, layers, hidden_size]; null: no predictions
    size_t drift_values = 0;  // of one sequence
    uint32_t max_sequences = 0;
    uint32_t hot_rows = 0;  // slots of an offloaded sequence's set; 0 = a double buffer
  };
  // Rows of the largest selection of an offloaded sequence.
  static constexpr uint32_t kMostSelected = kMostOffloadedSelection;
  static_assert(kMostSelected == kMaxSlots / kBlockTokens * kBlockTokens);

  explicit DeviceRows(const Options& options);

  // Memory for a sequence of up to `tokens` tokens whose selections have up to `selection` rows (0
  // = it never selects); all or nothing. False: too little is free.
  bool Take(RowPlacement placement, uint32_t tokens, uint32_t selection, TableSpace* tables,
            RowSets* sets);
  void Return(RowSets* sets);
  // No token is in any slot then, and nothing is known of the sequence's inputs.
  void Clear(const RowSets& sets);

  // What Take takes: pure, and what the coordinator counts with (WorkerHello).
  struct Need {
    uint32_t sets = 0;
    uint32_t slots = 0;  // of each set; a multiple of kBlockTokens

    uint32_t blocks() const { return sets * (slots / kBlockTokens); }
  };
  static Need NeedOf(uint32_t layers, uint32_t hot_rows, RowPlacement placement, uint32_t tokens,
                     uint32_t selection);

  const RowLayout& layout() const { return options_.layout; }
  const MapLayout& map_layout() const { return map_layout_; }
  uint32_t hot_rows() const { return options_.hot_rows; }
  uint32_t total_blocks() const { return options_.layout.blocks; }
  uint32_t free_blocks() const { return static_cast<uint32_t>(free_.size()); }
  size_t used_row_bytes() const;
  size_t used_map_bytes() const;
  const PagePool& maps() const { return maps_; }
  static size_t MetaBytes(const RowLayout& layout);  // of one block

 private:
  friend struct RowSets;

  const Options options_;
  const MapLayout map_layout_;
  PagePool maps_;
  std::vector<uint32_t> free_;  // blocks
  std::vector<LayerDrift> drifts_;
  std::vector<LayerDrift*> free_drifts_;
};

}  // namespace sparsekv
