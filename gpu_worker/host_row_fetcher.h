#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "gpu_worker/prefetcher.h"
#include "gpu_worker/row_fetcher.h"
#include "gpu_worker/simulated_link.h"
#include "gpu_worker/timeline.h"
#include "kernels/backend.h"

namespace sparsekv {

// Where the device's memory is the host's: a thread of its own fetches what was predicted, copies
// take what a simulated link would take, and everything is known at once.
class HostRowFetcher final : public RowFetcher {
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
  explicit HostRowFetcher(const Options& options);

  void BeginStep(size_t items) override;
  void Prefetch(uint32_t layer, std::span<const Request> requests, size_t stride,
                bool keep) override;
  double Settle(uint32_t layer, bool finish, LayerCounts* counts) override;
  void BeginLists(uint32_t) override {}
  void Bring(uint32_t layer, std::span<const Request> requests, size_t stride,
             std::span<AttendArgs::Item> attend, LayerCounts* counts) override;
  void GiveSlots() override {}
  void EndLayer(uint32_t) override {}
  void Stream(uint32_t layer, const StepItem& item, uint32_t first, uint32_t tokens,
              const RowTable* to, LayerCounts* counts) override;
  void FetchNotes() override {}
  void EndStep(std::vector<LayerCounts>*) override {}
  bool predicted(uint32_t layer, uint32_t index) const override;
  Prediction Predicted(uint32_t layer, uint32_t index) const override;
  uint64_t direct_bytes() const override { return direct_bytes_; }

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

  RowTable HostRows(uint32_t layer, const StepItem& item) const;

  const Options options_;
  const uint32_t kv_heads_;
  Pending pending_[2];
  uint64_t direct_bytes_ = 0;
};

}  // namespace sparsekv
