#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "coordinator/prefetch_control.h"
#include "coordinator/scheduler.h"
#include "coordinator/worker_link.h"
#include "sparsekv/v1/worker.pb.h"

namespace sparsekv {

// What the engine knows of one worker and its pool of row blocks: the ledger of what sequences
// hold, and the plan in preparation. Strand only; does no I/O but to send a finished plan.
class WorkerSlot {
 public:
  using Clock = std::chrono::steady_clock;

  // What is done about blocks at the store that nobody here knows of. Until kDone nothing is
  // allocated in this pool.
  enum class Reconcile { kNeeded, kUnderWay, kNeededAgain, kDone };

  WorkerSlot(uint32_t index, std::shared_ptr<WorkerLink> link, PrefetchOptions prefetch)
      : index_(index), link_(std::move(link)), prefetch_(prefetch) {}

  uint32_t index() const { return index_; }
  WorkerLink& link() { return *link_; }
  bool up() const { return up_; }
  bool ready() const { return up_ && reconcile == Reconcile::kDone; }
  uint64_t boot_id() const { return boot_id_; }
  uint64_t incarnation() const { return incarnation_; }  // rises with each stream
  const v1::WorkerHello& hello() const { return hello_; }

  void OnUp(uint64_t boot_id, const v1::WorkerHello& hello);
  // Every sequence is gone from the device; blocks stay held until the pool is reconciled, as the
  // old stream's worker may still be writing.
  void OnDown();

  // The ledger: owners of blocks, from before the store is asked until it has taken them back.
  // `row_blocks`: of the device.
  void Hold(uint64_t owner, const Need& need, uint64_t row_blocks) {
    held_[owner] = {need, row_blocks, /*active=*/true};
  }
  // The worker has ended it: its slot and the device's memory are free, host blocks not yet.
  void EndOnDevice(uint64_t owner);
  void Forget(uint64_t owner) { held_.erase(owner); }
  // Owners whose sequences live; the others are forgotten.
  void KeepOnly(const std::vector<uint64_t>& owners);
  WorkerCapacity Capacity(uint32_t pool_blocks) const;
  uint32_t active() const;
  uint32_t held_blocks() const;  // not yet taken back by the store

  // The next plan.
  void AddStart(v1::SequenceStart start);
  // Leaves the next plan. True when no plan with its start was sent: the worker knows nothing of
  // it.
  bool Remove(uint64_t sequence_id);
  const std::vector<uint64_t>& members() const { return members_; }
  // `decoding`: some member has had its first token. The plan's starts are the worker's from now
  // on; starts that would make the message too large are left for another plan.
  v1::Plan TakePlan(uint64_t coordinator_boot_id, bool decoding);

  // Figures of a report with this epoch. What changes goes into the next plan.
  std::vector<PrefetchControl::Change> OnStats(uint64_t epoch, const v1::EpochStats& stats);
  const PrefetchControl& prefetch() const { return control_; }
  // The device's memory by kind, while it is up.
  std::vector<v1::DeviceMemory> DeviceMemory() const;
  bool has_starts() const { return !starts_.empty(); }

  Reconcile reconcile = Reconcile::kNeeded;
  uint32_t allocations_under_way = 0;
  bool plan_posted = false;      // a plan will be sent at the strand's next turn
  Clock::time_point not_before;  // the store said "not now": no allocation until then
  Clock::time_point last_report;
  bool has_work = false;  // the last plan had members

 private:
  struct Holding {
    Need need;
    uint64_t row_blocks = 0;
    bool active = false;
  };

  const uint32_t index_;
  const std::shared_ptr<WorkerLink> link_;
  const PrefetchOptions prefetch_;
  bool up_ = false;
  uint64_t boot_id_ = 0;
  uint64_t incarnation_ = 0;
  v1::WorkerHello hello_;
  std::map<uint64_t, Holding> held_;       // by owner
  std::vector<uint64_t> members_;          // in order of start
  std::vector<v1::SequenceStart> starts_;  // not sent yet; members too
  uint64_t epoch_ = 0;
  PrefetchControl control_;      // of no layer where rows are not counted
  uint64_t settings_epoch_ = 1;  // the first plan with the settings of now
  std::vector<v1::DeviceMemory> reported_memory_;
};

}  // namespace sparsekv
