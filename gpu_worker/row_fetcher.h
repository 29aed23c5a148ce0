#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "gpu_worker/prefetcher.h"
#include "gpu_worker/simulated_link.h"
#include "gpu_worker/step_item.h"
#include "gpu_worker/timeline.h"
#include "kernels/backend.h"

namespace sparsekv {

// Brings rows of offloaded sequences into their slots: predicted ones ahead of their layer, missing
// ones when it is there. What is attended is decided elsewhere; this only sees to it that the rows
// of a list are on the device, and counts. Belongs to the device thread.
//
// Stamps of the step at position s (kernels/hot_rows.h): 4s = brought by its prediction, 4s+1 =
// predicted and there already, 4s+2 = selected. So a step's own rows are never its victims, and
// what was used outlives what was only guessed.
class RowFetcher {
 public:
  struct Options {
    RowLayout host_layout;  // the segment's pool
    std::byte* host_pool = nullptr;
    Backend* backend = nullptr;
    Prefetcher* prefetcher = nullptr;  // null: predictions are never asked for
    SimulatedLink* link = nullptr;     // null: a copy takes what it takes
    Timeline* timeline = nullptr;
    std::byte* lists = nullptr;  // set_slots * ListBytesPerSlot(kv_heads)
    uint32_t set_slots = 0;      // slots that the sets of one layer have together
    uint32_t max_batch = 0;
  };
  explicit RowFetcher(const Options& options);

  // Rows that one item of the step wants in one layer.
  struct Request {
    uint32_t index = 0;  // of the item
    const StepItem* item = nullptr;
    const uint32_t* rows = nullptr;  // [kv_heads, stride], tokens, ascending
    uint32_t count = 0;
    uint32_t* slots = nullptr;     // [kv_heads, stride], out
    RowMove* misses = nullptr;     // [kv_heads, stride]
    Resolved* resolved = nullptr;  // [kv_heads]
  };

  void BeginStep();

  // Gives the predicted rows slots and starts to fetch those that are not there. `keep`: their
  // slots will be asked for (Predicted). May be called for several parts of a batch.
  void Prefetch(uint32_t layer, std::span<const Request> requests, size_t stride, bool keep);

  // The layer begins: its prefetch ends, and what is not here is forgotten; `finish` waits for all
  // of it instead. Returns the seconds waited.
  double Settle(uint32_t layer, bool finish, LayerCounts* counts);

  // Sees to it that the rows are in `slots`; the item's current token gets a slot, not a row.
  // Fetches direct and waits.
  void Bring(uint32_t layer, std::span<const Request> requests, size_t stride, LayerCounts* counts);

  // Whether the item was predicted in this layer of this step, and what became of it: the slots,
  // with room for one more. REQUIRES: `keep` in Prefetch, and that it was settled.
  struct Prediction {
    uint32_t* slots = nullptr;  // [kv_heads, stride]; the first `count` of each are there
    size_t stride = 0;
    uint32_t count = 0;
    uint64_t brought = 0;  // rows, of all KV heads, that were not there before
  };
  bool predicted(uint32_t layer, uint32_t index) const;
  Prediction Predicted(uint32_t layer, uint32_t index) const;

  // Brings rows [0, tokens) of the item into `to`, whose row i is token i: a dense sequence's
  // layer.
  void Stream(uint32_t layer, const StepItem& item, uint32_t tokens, const RowTable& to,
              LayerCounts* counts);

  RowTable HostRows(uint32_t layer, const StepItem& item) const;
  uint64_t direct_bytes() const { return direct_bytes_; }

 private:
  // What a layer's prediction left. Layers take two of them in turn.
  struct Pending {
    struct Item {
      const StepItem* item = nullptr;  // null: not predicted
      RowMove* moves = nullptr;        // [kv_heads, stride]
      uint32_t* slots = nullptr;       // [kv_heads, stride]
      size_t stride = 0;
      uint32_t count = 0;
      uint64_t brought = 0;
    };
    uint32_t layer = kNoToken;
    uint32_t slots_used = 0;
    std::vector<Item> items;  // by index
    struct Job {
      uint64_t number;
      std::vector<PrefetchPiece> pieces;  // the prefetcher reads them where they are
      std::vector<uint32_t> index;        // of the item, by piece
    };
    std::vector<Job> jobs;
    std::vector<Resolved> resolved;  // of one Prefetch call
  };

  Pending& Open(uint32_t layer);
  void StartJob(uint32_t layer, Pending& pending, std::span<const Request> requests);
  void SettleJob(uint32_t layer, Pending::Job& job, bool finish, LayerCounts* counts);
  // Direct: over the link, in its order, and waited for. Returns the seconds.
  template <typename Copy>
  double Transfer(size_t bytes, const Copy& copy);

  const Options options_;
  const uint32_t kv_heads_;
  Pending pending_[2];
  uint64_t direct_bytes_ = 0;
};

// Of a row set's slot, in the lists of predictions.
inline size_t ListBytesPerSlot(uint32_t kv_heads) {
  return 2 * kv_heads * (sizeof(RowMove) + sizeof(uint32_t));
}

}  // namespace sparsekv
