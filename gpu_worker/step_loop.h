#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "base/bounded_queue.h"
#include "gpu_worker/device.h"
#include "gpu_worker/layerwise_prefill.h"
#include "gpu_worker/sequence.h"
#include "kv_store/client.h"
#include "sparsekv/v1/worker.pb.h"

namespace sparsekv {

// What the I/O threads hand to the device thread. A session is one stream of Worker.Run.
struct SessionOpened {
  uint64_t session = 0;
};
struct SessionClosed {
  uint64_t session = 0;
};
struct PlanArrived {
  uint64_t session = 0;
  v1::Plan plan;
};
struct StopRequested {};
using WorkerCommand = std::variant<SessionOpened, SessionClosed, PlanArrived, StopRequested>;
using WorkerInbox = BoundedQueue<WorkerCommand>;

// Where reports go. Called by the device thread; must not block. Reports of a session that is gone
// are dropped.
class ReportSink {
 public:
  virtual ~ReportSink() = default;
  virtual void Send(uint64_t session, v1::Report report) = 0;
};

// The worker's loop: takes plans between steps, runs one prefill unit and one decode step over
// every sequence of the plan, reports tokens as they come. Everything here belongs to the device
// thread, which calls Run. Policy lies in the plan; this executes it.
class StepLoop {
 public:
  struct Options {
    Device* device = nullptr;
    kv_store::SegmentClient* segment = nullptr;
    WorkerInbox* inbox = nullptr;
    ReportSink* sink = nullptr;
    v1::WorkerHello hello;
    uint64_t boot_id = 0;
  };
  explicit StepLoop(Options options);

  // Returns after StopRequested. Not OK when the segment is gone for good.
  absl::Status Run();

 private:
  using Batch = std::vector<std::pair<Sequence*, uint32_t>>;
  using Sequences = std::map<uint64_t, std::unique_ptr<Sequence>>;

  bool HasWork() const { return session_ != 0 && !sequences_.empty() && steps_left_ > 0; }
  absl::Status WatchStore();

  void Apply(WorkerCommand command);
  void OnOpened(uint64_t session);
  void OnPlan(const v1::Plan& plan);
  void Start(const v1::SequenceStart& start);
  void DropAll();

  void Step();
  // At most prefill_unit_tokens tokens of prompts through every layer, or as much work on one
  // prompt that goes layer by layer.
  void PrefillUnit();
  Batch NextPrompts();
  void PrefillByLayer(Sequence& sequence);
  void DecodeStep();
  // Runs `batch` (each sequence with its number of tokens) as one step and advances it; sequences
  // whose rows were lost end and leave the batch first. Those whose prompt is then done draw a
  // token.
  void Run(Batch& batch, StepKind kind);
  // Inside the step: the tokens that `drawing`, indices into the batch, will draw. `last`: each
  // one's last token in the pass.
  void Draw(const Batch& batch, StepKind kind, const std::vector<uint32_t>& drawing,
            const std::vector<uint32_t>& last, std::vector<SampledToken>* tokens);
  void Accept(Sequence& sequence, const SampledToken& token);
  void End(uint64_t id, v1::FinishReason reason, const absl::Status& error = absl::OkStatus());
  // Sends what the report holds, if anything; `heartbeat`: even if not.
  void Flush(bool heartbeat = false);
  void CloseEpoch(bool exhausted);
  void FillLayers();
  void FillTransfers();

  Options options_;
  bool stopping_ = false;
  uint64_t session_ = 0;  // 0 = none
  uint64_t epoch_ = 0;
  uint32_t epoch_steps_ = 0;  // steps a plan is good for
  uint32_t steps_left_ = 0;
  uint32_t prefill_unit_tokens_ = 0;
  std::vector<uint64_t> order_;  // members, prefill order
  Sequences sequences_;
  v1::Report report_;                           // of the step in progress
  v1::EpochStats stats_;                        // of the epoch in progress
  bool measured_ = false;                       // one decode step of it was
  std::unique_ptr<LayerwisePrefill> by_layer_;  // of sequence by_layer_id_; null: none is under way
  uint64_t by_layer_id_ = 0;
  struct Transfers {
    uint64_t direct_bytes = 0, gather_bytes = 0, expired = 0, refused = 0;
    double link_s = 0;
  } reported_;  // all that earlier epochs have told
  std::chrono::steady_clock::time_point flushed_{};
};

}  // namespace sparsekv
