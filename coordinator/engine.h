#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/metrics.h"
#include "coordinator/prefetch_control.h"
#include "coordinator/request.h"
#include "coordinator/scheduler.h"
#include "coordinator/store_link.h"
#include "coordinator/text_codec.h"
#include "coordinator/validate.h"
#include "coordinator/worker_link.h"
#include "coordinator/worker_slot.h"

namespace sparsekv {

// The coordinator's state and what happens to it: requests, the queue, the workers, the store.
// Every method runs on the strand. Every request that was submitted finishes its stream exactly
// once; every block that was taken is given back once the worker is done with it, or by
// reconciliation.
//
// engine.cc: requests. engine_peers.cc: what workers and the store report. engine_metrics.cc: what
// is shown.
class Engine final : public WorkerLink::Listener, public StoreLink::Listener {
 public:
  struct Options {
    boost::asio::any_io_executor strand;
    boost::asio::any_io_executor pool;  // tokenises; joined before the engine is destroyed
    const TextCodec* codec = nullptr;
    Metrics* metrics = nullptr;
    std::shared_ptr<StoreLink> store;
    std::vector<std::shared_ptr<WorkerLink>> workers;  // by pool
    uint32_t default_budget_denominator = 16;
    PlacementPolicy placement = PlacementPolicy::kAuto;
    PrefetchOptions prefetch;
    // Called when it can take jobs for the first time: the store and every worker are there.
    std::function<void()> on_ready = [] {};
    // Called with whether jobs can be served, whenever that changes.
    std::function<void(bool)> on_serving = [](bool) {};
    // A worker that has work and says nothing for so long is hung: it is killed, and its parent
    // starts another. Workers report at least once a second while they compute.
    std::chrono::milliseconds lease{30000};
    std::function<void(int64_t pid)> kill_worker = [](int64_t) {};
  };

  explicit Engine(Options options);
  ~Engine() override;

  void Start();
  // No more events from the links; what is under way is left.
  void Stop();

  // Takes the request; the stream is finished in time, whatever happens. Returns its key.
  uint64_t Submit(std::shared_ptr<const v1::GenerateRequest> request,
                  std::shared_ptr<ResponseStream> stream);
  // The client left, or its time is over. A key that is unknown or finished is ignored.
  void Cancel(uint64_t key, const absl::Status& why);

  // Unavailable before the first worker has said hello.
  absl::StatusOr<v1::ModelInfoResponse> ModelInfo() const;
  // OK when jobs can be taken and steps make progress, else why not.
  absl::Status Readiness() const;
  void UpdateGauges();

  // Takes no more requests; `on_idle` is called once when none is left (perhaps before this
  // returns).
  void Drain(std::function<void()> on_idle);
  // Ends every request for its client.
  void FailAll(const absl::Status& why);

  void OnWorkerUp(uint32_t worker, uint64_t boot_id, const v1::WorkerHello& hello) override;
  void OnWorkerReport(uint32_t worker, const v1::Report& report) override;
  void OnWorkerDown(uint32_t worker, const absl::Status& why) override;
  void OnStoreUp(const v1::DescribeResponse& store) override;
  void OnStoreDown(const absl::Status& why) override;

 private:
  using Clock = Request::Clock;

  // Requests.
  Request* Find(uint64_t key);
  void BeginPrepare(Request& request);
  void OnPrepared(uint64_t key, absl::StatusOr<GenerateParams> params);
  absl::Status CheckCanEverFit(const Need& need) const;
  void Enqueue(Request& request);
  void Pump();
  void Allocate(Request& request, const Admission& admission);
  void OnAllocated(uint64_t key, uint64_t incarnation, absl::StatusOr<v1::AllocateResponse> blocks);
  // What became of an allocation that failed: tried again later, or the request's end.
  void OnNotAllocated(Request& request, const absl::Status& status);
  void StartOnWorker(Request& request, const v1::AllocateResponse& blocks);
  void Drop(Request& request);
  void Release(WorkerSlot& slot, uint64_t owner);
  void Finish(Request& request, const absl::Status& status);
  void FinishCompleted(Request& request, v1::FinishReason reason, const v1::SequenceEnd* end);
  void Erase(uint64_t key);
  size_t waiting() const;

  // Peers.
  absl::Status AdoptModel(uint32_t worker, const v1::WorkerHello& hello);
  void OnToken(const WorkerSlot& slot, const v1::TokenEvent& event);
  void OnEnd(WorkerSlot& slot, const v1::SequenceEnd& end);
  // The request that this worker runs, or null.
  Request* FindOn(const WorkerSlot& slot, uint64_t key);
  void OnStats(WorkerSlot& slot, uint64_t epoch, const v1::EpochStats& stats);

  void OnSequenceDone(Request& request, const v1::SequenceEnd& end);
  void PostPlan(WorkerSlot& slot);
  void SendPlan(WorkerSlot& slot);
  void MaybeReconcile(WorkerSlot& slot);
  void OnReconciled(WorkerSlot& slot, const std::vector<uint64_t>& owners,
                    absl::StatusOr<v1::ReconcileResponse> response);
  // Sets the pool right after a call whose outcome is unknown.
  void NeedReconcile(WorkerSlot& slot);
  void RetryLater();
  // Looks after leases, again and again.
  void WatchWorkers();
  void CheckServing();
  void CheckIdle();

  // What is shown.
  void CountEpoch(const WorkerSlot& slot, const v1::EpochStats& stats);
  void ShowPrefetch(const WorkerSlot& slot);
  void ShowPrefetchChanges(const WorkerSlot& slot,
                           const std::vector<PrefetchControl::Change>& changes);

  Options options_;
  Metrics& metrics_;
  const uint64_t boot_id_;
  std::deque<WorkerSlot> slots_;  // never moves
  bool store_up_ = false;
  v1::DescribeResponse store_;                // as described last; no pools before
  std::shared_ptr<const ServedModel> model_;  // null before the first hello; never changes after

  uint64_t next_key_ = 1;
  std::map<uint64_t, std::unique_ptr<Request>> requests_;
  std::unordered_map<std::string, uint64_t> ids_;  // of requests whose clients are there
  std::deque<Waiting> queue_;                      // by arrival

  bool draining_ = false;
  bool serving_ = false;
  bool was_ready_ = false;
  std::function<void()> on_idle_;
  boost::asio::steady_timer retry_;
  bool retry_set_ = false;
  boost::asio::steady_timer watch_;
};

}  // namespace sparsekv
