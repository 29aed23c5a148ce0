#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "gpu_worker/row_fetcher.h"
#include "kernels/backend.h"

namespace sparsekv {

// For a device that has memory of its own and runs a step without the host: what was predicted is
// copied on the prefetch lane from when the layer before has been attended, as the link is its
// until then, to when its own layer is: attention finds what has come, says stop and reads what is
// missing from the segment itself, the current token's row with it, which is there already. It
// waits for no copy. Beside the layer's other products what did not come is forgotten, and the rows
// that attention has read get slots, and are copied there from where they landed. What happened is
// written into a journal on the device and counted when the step is over. (A row that came while it
// was looked for may have been read all the same: it counts as useful, and as bytes once.)
// Predictions are always corrected: nothing asks for their slots.
//
// Where layers share sets nothing is copied: no layer will find there what it left.
class LaneRowFetcher final : public RowFetcher {
 public:
  struct Options {
    RowLayout host_layout;  // the segment's pool, which the device can read
    std::byte* host_pool = nullptr;
    Backend* backend = nullptr;
    uint32_t layers = 0;
    std::byte* lists = nullptr;  // set_slots * ListBytesPerSlot(kv_heads)
    uint32_t set_slots = 0;      // slots that the sets of one layer have together
    // Rows that a layer's attention has read: landing_layout.pool_bytes(), of set_slots rows; none
    // where layers share sets. Its blocks in order: 0, 1, ..., on the device.
    RowLayout landing_layout;
    std::byte* landing = nullptr;
    const uint32_t* landing_blocks = nullptr;
    std::byte* journal = nullptr;
    uint32_t max_batch = 0;
  };
  static size_t JournalBytes(uint32_t layers, uint32_t max_batch, uint32_t kv_heads);
  explicit LaneRowFetcher(const Options& options);

  void BeginStep(size_t items) override;
  void Prefetch(uint32_t layer, std::span<const Request> requests, size_t stride,
                bool keep) override;
  double Settle(uint32_t layer, bool finish, LayerCounts* counts) override;
  void BeginLists(uint32_t layer) override;
  void Bring(uint32_t layer, std::span<const Request> requests, size_t stride,
             std::span<AttendArgs::Item> attend, LayerCounts* counts) override;
  void GiveSlots() override;
  void EndLayer(uint32_t layer) override;
  void Stream(uint32_t layer, const StepItem& item, uint32_t first, uint32_t tokens,
              const RowTable* to, LayerCounts* counts) override;
  void FetchNotes() override;
  void EndStep(std::vector<LayerCounts>* counts) override;
  bool predicted(uint32_t layer, uint32_t index) const override;
  Prediction Predicted(uint32_t layer, uint32_t index) const override;
  uint64_t direct_bytes() const override { return direct_bytes_; }

 private:
  // Rows of one call of Prefetch or Bring, or of Stream.
  struct Call {
    uint32_t layer = 0;
    bool ahead = false;
    bool streamed = false;
    std::vector<const StepItem*> items;
    std::vector<uint32_t> index;  // of the items
    std::vector<uint32_t> count;  // rows asked for, per KV head
    size_t note = 0;              // place in the journal
    std::vector<bool> resolved;   // Bring: whether the item's rows are looked for in slots
    // Ahead:
    std::vector<CopyAheadArgs::Item> copies;
    uint32_t listed = 0, copied = 0;  // marks: when slots are given, and when the copies are over
    bool forgotten = false;           // what did not come
  };
  // Of the last Bring, for GiveSlots.
  struct Giving {
    uint32_t layer = 0;
    std::vector<uint32_t> index;  // of all of its items
    size_t stride = 0;
    std::vector<ResolveArgs::Item> resolve;
    std::vector<CopyRowsArgs::Item> copies;
  };

  Call& Begin(uint32_t layer, bool ahead, std::span<const Request> requests);
  void WaitForKeepLane();
  void ForgetRest();
  CopyProgress* ProgressOf(uint32_t layer, uint32_t index) const;
  RowCounts Brought(const Call& call, size_t item, std::span<const Resolved> found) const;
  // `found`: [items][kv_heads], what Resolve wrote.
  void CountAhead(const Call& call, const CopyProgress& progress, std::span<const Resolved> found,
                  LayerCounts* counts);
  void CountBrought(const Call& call, const CopyTimes& times, std::span<const Resolved> found,
                    LayerCounts* counts);
  void AddStall(const Call& call, double seconds, LayerCounts* counts);
  RowTable HostRows(uint32_t layer, const StepItem& item) const;
  CopyProgress* progress(const Call& call) const;
  CopyTimes* times(const Call& call) const;
  Resolved* resolved(const Call& call, size_t item) const;

  const Options options_;
  const uint32_t kv_heads_;
  const size_t most_calls_;
  std::vector<Call> calls_;  // of the step
  size_t journal_used_ = 0;  // bytes
  uint32_t slots_used_[2]{};
  uint32_t open_layer_[2]{};
  std::vector<std::vector<bool>> predicted_;  // [2][items], of the layers in open_layer_
  Giving giving_;
  std::optional<uint32_t>
      given_;  // mark: when the last GiveSlots' operations are over, if not waited for
  std::vector<uint64_t> seen_;  // the journal, when the step is over
  uint64_t direct_bytes_ = 0;
};

}  // namespace sparsekv
