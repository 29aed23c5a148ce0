#include "coordinator/engine.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/ids.h"
#include "base/limits.h"
#include "base/log.h"

namespace sparsekv {

namespace {

double Seconds(Request::Clock::duration time) {
  return std::chrono::duration<double>(time).count();
}

v1::FinishReason ReasonOf(const absl::Status& status) {
  if (absl::IsCancelled(status)) return v1::FINISH_REASON_CANCELLED;
  if (absl::IsDeadlineExceeded(status)) return v1::FINISH_REASON_DEADLINE;
  return v1::FINISH_REASON_ERROR;
}

v1::SequenceStart MakeStart(const Request& request, const v1::AllocateResponse& blocks) {
  const GenerateParams& params = request.params;
  v1::SequenceStart start;
  start.set_sequence_id(request.key);
  start.mutable_prompt_ids()->Add(params.prompt_ids.begin(), params.prompt_ids.end());
  start.set_max_new_tokens(params.max_new_tokens);
  start.mutable_stop_token_ids()->Add(params.stop_token_ids.begin(), params.stop_token_ids.end());
  start.set_temperature(params.temperature);
  start.set_top_p(params.top_p);
  start.set_top_k(params.top_k);
  start.set_seed(params.seed);
  start.set_attention(params.attention);
  *start.mutable_budget() = params.budget;
  start.set_recall_target(params.recall_target);
  start.set_top_logprobs(params.logprobs);
  start.set_want_logprobs(params.logprobs > 0);
  start.set_owner(request.owner);
  start.set_placement(request.placement);
  *start.mutable_blocks() = blocks.blocks();
  *start.mutable_generations() = blocks.generations();
  return start;
}

}  // namespace

Engine::Engine(Options options)
    : options_(std::move(options)),
      metrics_(*options_.metrics),
      boot_id_(NewBootId()),
      retry_(options_.strand),
      watch_(options_.strand) {
  for (size_t i = 0; i < options_.workers.size(); ++i) {
    slots_.emplace_back(static_cast<uint32_t>(i), options_.workers[i], options_.prefetch);
  }
}

Engine::~Engine() = default;

void Engine::Start() {
  spdlog::info("boot {}, {} workers", HexId(boot_id_), slots_.size());
  options_.store->Start(this);
  for (WorkerSlot& slot : slots_) slot.link().Start(this);
  WatchWorkers();
}

void Engine::Stop() {
  options_.store->Stop();
  for (WorkerSlot& slot : slots_) slot.link().Stop();
  retry_.cancel();
  watch_.cancel();
}

uint64_t Engine::Submit(std::shared_ptr<const v1::GenerateRequest> wire,
                        std::shared_ptr<ResponseStream> stream) {
  const uint64_t key = next_key_++;
  absl::Status refused = ValidateRequestId(wire->request_id());
  if (draining_) {
    refused = absl::UnavailableError("draining: this server is about to stop");
  } else if (refused.ok() && ids_.contains(wire->request_id())) {
    refused = absl::AlreadyExistsError(
        absl::StrCat("request_id: ", wire->request_id(), " is in use by a live request"));
  } else if (refused.ok() && waiting() >= kMaxQueued) {
    refused = absl::ResourceExhaustedError(
        absl::StrCat("queue: ", waiting(), " requests wait, the most there may be"));
  }
  if (!refused.ok()) {
    stream->Finish(refused);
    return key;
  }
  auto request = std::make_unique<Request>();
  request->key = key;
  request->id = wire->request_id().empty() ? "req-" + HexId(NewBootId()) : wire->request_id();
  request->wire = std::move(wire);
  request->stream = std::move(stream);
  request->arrived = Clock::now();
  ids_[request->id] = key;
  Request& added = *requests_.emplace(key, std::move(request)).first->second;
  if (model_) BeginPrepare(added);
  return key;
}

void Engine::BeginPrepare(Request& request) {
  boost::asio::post(options_.pool, [this, key = request.key, wire = std::move(request.wire),
                                    model = model_, codec = options_.codec] {
    auto params = Prepare(*wire, *model, *codec);
    boost::asio::post(options_.strand, [this, key, params = std::move(params)]() mutable {
      OnPrepared(key, std::move(params));
    });
  });
}

void Engine::OnPrepared(uint64_t key, absl::StatusOr<GenerateParams> params) {
  Request* request = Find(key);
  if (!request) return;  // its client has left
  absl::Status status = params.status();
  if (status.ok()) {
    request->params = *std::move(params);
    request->need =
        NeedOf(request->params.tokens(), request->params.attention == v1::ATTENTION_DOUBLE_SPARSITY,
               request->params.budget);
    status = CheckCanEverFit(request->need);
  }
  if (!status.ok()) {
    Finish(*request, status);
    return Erase(key);
  }
  request->completion.emplace(*options_.codec, request->params.stop);
  v1::GenerateResponse first;
  first.set_request_id(request->id);
  first.set_seed(request->params.seed);
  request->stream->Write(std::move(first));
  Enqueue(*request);
  Pump();
}

// What is not known yet (no store, no hello) refuses nothing; the queue is checked again when it
// is.
absl::Status Engine::CheckCanEverFit(const Need& need) const {
  if (store_.pools() == 0) return absl::OkStatus();
  std::string why;
  for (const WorkerSlot& slot : slots_) {
    if (slot.incarnation() == 0) return absl::OkStatus();
    why = WhyNever(need, slot.Capacity(store_.blocks_per_pool()), options_.placement);
    if (why.empty()) return absl::OkStatus();
  }
  return absl::ResourceExhaustedError(why);
}

// By arrival, whatever took longer to tokenise or had to come back.
void Engine::Enqueue(Request& request) {
  request.phase = Phase::kQueued;
  const auto after =
      std::upper_bound(queue_.begin(), queue_.end(), request.key,
                       [](uint64_t key, const Waiting& waiting) { return key < waiting.key; });
  queue_.insert(after, {request.key, request.need});
}

void Engine::Pump() {
  if (!store_up_ || queue_.empty()) return;
  std::vector<WorkerCapacity> capacities;
  for (const WorkerSlot& slot : slots_) {
    capacities.push_back(slot.Capacity(store_.blocks_per_pool()));
  }
  const std::vector<Admission> admissions =
      Schedule(queue_, std::move(capacities), options_.placement);
  queue_.erase(queue_.begin(), queue_.begin() + admissions.size());
  for (const Admission& admission : admissions) Allocate(*Find(admission.key), admission);
}

void Engine::Allocate(Request& request, const Admission& admission) {
  WorkerSlot& slot = slots_[admission.worker];
  request.phase = Phase::kAllocating;
  request.worker = admission.worker;
  request.placement = admission.placement;
  request.owner = NewBootId();  // what a failed attempt may have taken is never mistaken for this
  slot.Hold(request.owner, request.need, admission.row_blocks);
  ++slot.allocations_under_way;
  v1::AllocateRequest allocate;
  allocate.set_pool(admission.worker);
  allocate.set_owner(request.owner);
  allocate.set_tokens(request.params.tokens());
  options_.store->Allocate(
      allocate, [this, key = request.key, incarnation = slot.incarnation()](auto blocks) {
        OnAllocated(key, incarnation, std::move(blocks));
      });
}

void Engine::OnAllocated(uint64_t key, uint64_t incarnation,
                         absl::StatusOr<v1::AllocateResponse> blocks) {
  Request& request = *Find(key);  // nothing erases a request that is allocating
  WorkerSlot& slot = slots_[request.worker];
  --slot.allocations_under_way;
  absl::Status status = blocks.status();
  if (status.ok()) {
    const auto count = static_cast<uint32_t>(blocks->blocks_size());
    if (count != request.need.host_blocks || blocks->generations_size() != blocks->blocks_size()) {
      status = absl::InternalError(
          absl::StrCat("the store gave ", count, " blocks instead of ", request.need.host_blocks));
    } else if (!slot.ready() || slot.incarnation() != incarnation) {
      status = absl::UnavailableError("the worker went away");
    }
  }
  const bool taken = blocks.ok();
  if (status.ok() && request.stream) {
    StartOnWorker(request, *blocks);
  } else {
    // The worker has never heard of this owner, so that its blocks can go back at once.
    if (taken) {
      slot.EndOnDevice(request.owner);
      Release(slot, request.owner);
    } else {
      slot.Forget(request.owner);
    }
    OnNotAllocated(request, status);
  }
  MaybeReconcile(slot);
  Pump();
}

void Engine::OnNotAllocated(Request& request, const absl::Status& status) {
  if (!request.stream) return Erase(request.key);
  switch (status.code()) {
    case absl::StatusCode::kResourceExhausted:
      // Blocks that somebody else still holds: the store frees them in its own time.
      slots_[request.worker].not_before = Clock::now() + std::chrono::milliseconds(50);
      RetryLater();
      return Enqueue(request);
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      return Enqueue(request);
    case absl::StatusCode::kInvalidArgument:
      Finish(request, absl::ResourceExhaustedError(status.message()));
      return Erase(request.key);
    default:
      Finish(request, absl::InternalError(absl::StrCat("the store: ", status.message())));
      return Erase(request.key);
  }
}

void Engine::StartOnWorker(Request& request, const v1::AllocateResponse& blocks) {
  request.phase = Phase::kRunning;
  request.started = Clock::now();
  metrics_.prompt_tokens.Increment(static_cast<double>(request.params.prompt_ids.size()));
  metrics_.request_queue_time.Observe(Seconds(request.started - request.arrived));
  WorkerSlot& slot = slots_[request.worker];
  slot.AddStart(MakeStart(request, blocks));
  PostPlan(slot);
}

void Engine::Cancel(uint64_t key, const absl::Status& why) {
  Request* request = Find(key);
  if (!request) return;
  Finish(*request, why);
  switch (request->phase) {
    case Phase::kPreparing:
      return Erase(key);
    case Phase::kQueued: {
      std::erase_if(queue_, [=](const Waiting& waiting) { return waiting.key == key; });
      Erase(key);
      return Pump();  // it may have been the one that the others waited for
    }
    case Phase::kAllocating:  // OnAllocated gives back what it got
    case Phase::kEnding:
      return;
    case Phase::kRunning:
      return Drop(*request);
  }
}

// Out of the next plan, which goes at once. The blocks follow when the worker has reported the end.
void Engine::Drop(Request& request) {
  WorkerSlot& slot = slots_[request.worker];
  request.phase = Phase::kEnding;
  const bool unknown_to_worker = slot.Remove(request.key);
  PostPlan(slot);
  if (!unknown_to_worker) return;
  slot.EndOnDevice(request.owner);
  Release(slot, request.owner);
  Erase(request.key);
  Pump();
}

void Engine::Release(WorkerSlot& slot, uint64_t owner) {
  v1::ReleaseRequest release;
  release.set_pool(slot.index());
  release.set_owner(owner);
  options_.store->Release(release, [this, &slot, owner](auto response) {
    if (!response.ok()) {
      // Held until the pool is reconciled: when the store is back, or soon if it never went away.
      spdlog::warn("release in pool {}: {}", slot.index(), response.status().ToString());
      NeedReconcile(slot);
      return;
    }
    slot.Forget(owner);
    Pump();
  });
}

void Engine::FinishCompleted(Request& request, v1::FinishReason reason,
                             const v1::SequenceEnd* end) {
  if (!request.stream) return;
  v1::GenerateResponse last;
  if (!request.completion->stopped()) last.set_text(request.completion->Finish());
  if (request.completion->stopped()) {
    reason = v1::FINISH_REASON_STOP;
    last.set_stop_string(request.completion->stop_string());
  }
  last.set_finish_reason(reason);
  auto* usage = last.mutable_usage();
  usage->set_prompt_tokens(static_cast<uint32_t>(request.params.prompt_ids.size()));
  usage->set_completion_tokens(request.completion->tokens());
  auto* timings = last.mutable_timings();
  timings->set_queue_s(Seconds(request.started - request.arrived));
  if (request.completion->tokens() > 0) {
    timings->set_ttft_s(Seconds(request.first_token - request.arrived));
  }
  if (end) {
    *last.mutable_sparsity() = end->sparsity();
    timings->set_prefill_s(end->prefill_s());
    timings->set_decode_s(end->decode_s());
    timings->set_stall_s(end->stall_s());
  }
  last.mutable_sparsity()->set_attention(request.params.attention);
  request.stream->Write(std::move(last));
  metrics_.e2e_request_latency.Observe(Seconds(Clock::now() - request.arrived));
  metrics_.Finished(reason).Increment();
  ids_.erase(request.id);
  std::exchange(request.stream, nullptr)->Finish(absl::OkStatus());
}

void Engine::Finish(Request& request, const absl::Status& status) {
  if (!request.stream) return;
  if (request.phase != Phase::kPreparing) metrics_.Finished(ReasonOf(status)).Increment();
  ids_.erase(request.id);
  std::exchange(request.stream, nullptr)->Finish(status);
}

Request* Engine::Find(uint64_t key) {
  const auto found = requests_.find(key);
  return found == requests_.end() ? nullptr : found->second.get();
}

void Engine::Erase(uint64_t key) {
  requests_.erase(key);
  CheckIdle();
}

size_t Engine::waiting() const {
  return std::count_if(requests_.begin(), requests_.end(), [](const auto& entry) {
    return entry.second->phase == Phase::kPreparing || entry.second->phase == Phase::kQueued;
  });
}

void Engine::Drain(std::function<void()> on_idle) {
  draining_ = true;
  on_idle_ = std::move(on_idle);
  CheckServing();
  CheckIdle();
}

void Engine::FailAll(const absl::Status& why) {
  queue_.clear();  // so that none of them starts while the others end
  std::vector<uint64_t> keys;
  for (const auto& [key, request] : requests_) keys.push_back(key);
  for (uint64_t key : keys) Cancel(key, why);
}

}  // namespace sparsekv
