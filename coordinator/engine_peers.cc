// Engine: what workers and the store report.
#include <algorithm>
#include <boost/asio/post.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/ids.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/version.h"
#include "coordinator/engine.h"

namespace sparsekv {

namespace {

// A worker that runs sequences and reports nothing for so long makes no progress.
constexpr std::chrono::seconds kStepLimit{5};  // workers that compute report once a second
constexpr std::chrono::milliseconds kRetry{60};

double Seconds(Request::Clock::duration time) {
  return std::chrono::duration<double>(time).count();
}

}  // namespace

// The first hello says what is served; one that says something else is refused.
absl::Status Engine::AdoptModel(uint32_t worker, const v1::WorkerHello& hello) {
  if (hello.pool() != worker) {
    return absl::FailedPreconditionError(
        absl::StrCat("it uses pool ", hello.pool(), ", its socket is that of pool ", worker));
  }
  if (hello.max_batch() == 0) return absl::FailedPreconditionError("max_batch is 0");
  if (hello.model().layers() > kMaxLayers) {
    return absl::FailedPreconditionError(
        absl::StrCat("layers: ", hello.model().layers(), " is over ", kMaxLayers));
  }
  if (model_) {
    const auto& info = model_->info;
    if (info.fingerprint() == hello.model().fingerprint() &&
        info.context() == hello.model().context() && info.layers() == hello.model().layers() &&
        info.double_sparsity() == hello.model().double_sparsity()) {
      return absl::OkStatus();
    }
    return absl::FailedPreconditionError(absl::StrCat(
        "it serves model ", hello.model().fingerprint(), ", not ", info.fingerprint()));
  }
  auto model = std::make_shared<ServedModel>();
  model->info = hello.model();
  model->eos_token_ids.assign(hello.eos_token_ids().begin(), hello.eos_token_ids().end());
  model->default_budget_denominator = options_.default_budget_denominator;
  model_ = std::move(model);
  for (auto& [key, request] : requests_) BeginPrepare(*request);  // all have waited for this
  return absl::OkStatus();
}

void Engine::OnWorkerUp(uint32_t worker, uint64_t boot_id, const v1::WorkerHello& hello) {
  WorkerSlot& slot = slots_[worker];
  if (absl::Status status = AdoptModel(worker, hello); !status.ok()) {
    return slot.link().Break(std::string(status.message()));
  }
  if (slot.incarnation() > 0) {
    auto& restarts =
        boot_id == slot.boot_id() ? metrics_.worker_restarts_stream : metrics_.worker_restarts_died;
    restarts.Increment();
  }
  slot.OnUp(boot_id, hello);
  metrics_.AddLayers(worker, hello.model().layers());
  ShowPrefetch(slot);
  // Its old sequences are gone now, and nobody writes to their blocks any more.
  slot.reconcile = slot.reconcile == WorkerSlot::Reconcile::kUnderWay
                       ? WorkerSlot::Reconcile::kNeededAgain
                       : WorkerSlot::Reconcile::kNeeded;
  MaybeReconcile(slot);
  CheckServing();
}

void Engine::OnWorkerDown(uint32_t worker, const absl::Status&) {
  WorkerSlot& slot = slots_[worker];
  if (!slot.up()) return;  // it was refused
  slot.OnDown();
  if (slot.reconcile == WorkerSlot::Reconcile::kDone) {
    slot.reconcile = WorkerSlot::Reconcile::kNeeded;
  }
  std::vector<uint64_t> gone;
  for (const auto& [key, request] : requests_) {
    const bool on_device = request->phase == Phase::kRunning || request->phase == Phase::kEnding;
    if (on_device && request->worker == worker) gone.push_back(key);
  }
  for (uint64_t key : gone) {
    Request& request = *Find(key);
    if (request.completion->stopped()) {
      FinishCompleted(request, v1::FINISH_REASON_STOP, nullptr);
    } else {
      Finish(request, absl::UnavailableError("worker restarted: the request was running on it"));
    }
    Erase(key);
  }
  CheckServing();
  CheckIdle();
}

void Engine::OnWorkerReport(uint32_t worker, const v1::Report& report) {
  WorkerSlot& slot = slots_[worker];
  if (!slot.up()) return;
  slot.last_report = Clock::now();
  for (const v1::TokenEvent& event : report.tokens()) OnToken(slot, event);
  for (const v1::SequenceEnd& end : report.ends()) OnEnd(slot, end);
  if (report.has_stats()) OnStats(slot, report.epoch(), report.stats());
  if (!report.ends().empty()) Pump();
}

Request* Engine::FindOn(const WorkerSlot& slot, uint64_t key) {
  Request* request = Find(key);
  if (!request || request->worker != slot.index()) return nullptr;
  return request->phase == Phase::kRunning || request->phase == Phase::kEnding ? request : nullptr;
}

void Engine::OnToken(const WorkerSlot& slot, const v1::TokenEvent& event) {
  Request* request = FindOn(slot, event.sequence_id());
  if (!request || request->phase != Phase::kRunning) return;  // made while the drop was on its way
  Completion& completion = *request->completion;
  if (event.index() != completion.tokens()) {
    Finish(*request, absl::InternalError(absl::StrCat("the worker sent token ", event.index(),
                                                      " instead of ", completion.tokens())));
    return Drop(*request);
  }
  const Clock::time_point now = Clock::now();
  if (completion.tokens() == 0) {
    request->first_token = now;
    metrics_.time_to_first_token.Observe(Seconds(now - request->arrived));
  } else {
    metrics_.inter_token_latency.Observe(Seconds(now - request->last_token));
  }
  request->last_token = now;
  metrics_.generation_tokens.Increment();

  v1::GenerateResponse delta;
  delta.add_token_ids(event.token_id());
  if (event.has_logprobs()) *delta.add_logprobs() = event.logprobs();
  delta.set_text(completion.Push(event.token_id()));
  request->stream->Write(std::move(delta));
  if (completion.stopped()) Drop(*request);
}

void Engine::OnEnd(WorkerSlot& slot, const v1::SequenceEnd& end) {
  Request* request = FindOn(slot, end.sequence_id());
  if (!request) {
    spdlog::error("worker {} ended sequence {}, which it does not run", slot.index(),
                  end.sequence_id());
    return;
  }
  slot.Remove(request->key);
  slot.EndOnDevice(request->owner);
  Release(slot, request->owner);
  if (request->stream) OnSequenceDone(*request, end);
  Erase(request->key);
}

// The end, for a client that is still there.
void Engine::OnSequenceDone(Request& request, const v1::SequenceEnd& end) {
  if (request.completion->stopped()) {
    return FinishCompleted(request, v1::FINISH_REASON_STOP, &end);
  }
  switch (end.reason()) {
    case v1::FINISH_REASON_STOP:
    case v1::FINISH_REASON_LENGTH:
      if (end.generated() == request.completion->tokens()) {
        return FinishCompleted(request, end.reason(), &end);
      }
      return Finish(request, absl::InternalError(
                                 absl::StrCat("the worker made ", end.generated(), " tokens, ",
                                              request.completion->tokens(), " have arrived")));
    case v1::FINISH_REASON_ERROR: {
      const bool known = end.error_code() > 0 && end.error_code() <= 16;
      return Finish(request, absl::Status(known ? static_cast<absl::StatusCode>(end.error_code())
                                                : absl::StatusCode::kInternal,
                                          end.error()));
    }
    default:
      return Finish(request, absl::InternalError("the worker dropped a sequence of its plan"));
  }
}

void Engine::OnStats(WorkerSlot& slot, uint64_t epoch, const v1::EpochStats& stats) {
  CountEpoch(slot, stats);
  const auto changes = slot.OnStats(epoch, stats);
  if (!changes.empty()) ShowPrefetchChanges(slot, changes);
  // Half of the plan is used up, so that the next one arrives before the worker must wait. Shorter
  // ones are the rest of a plan that another has replaced: answering those would never end.
  // A used-up plan is always followed by another, or the worker would wait for ever.
  const bool worn = stats.steps() >= kPlanSteps / 2 && slot.link().unsent() == 0;
  if (!slot.members().empty() && (stats.plan_exhausted() || worn)) PostPlan(slot);
}

// At the strand's next turn, so that what happens in this one goes into one plan.
void Engine::PostPlan(WorkerSlot& slot) {
  if (std::exchange(slot.plan_posted, true)) return;
  boost::asio::post(options_.strand, [this, &slot] {
    slot.plan_posted = false;
    if (slot.up()) SendPlan(slot);
  });
}

void Engine::SendPlan(WorkerSlot& slot) {
  const auto& members = slot.members();
  const bool decoding = std::any_of(members.begin(), members.end(), [this](uint64_t key) {
    const Request* request = Find(key);
    return request && request->completion->tokens() > 0;
  });
  // An idle worker says nothing: its silence counts from the plan that gives it work.
  if (std::exchange(slot.has_work, !members.empty()) == false) slot.last_report = Clock::now();
  slot.link().Send(slot.TakePlan(boot_id_, decoding));
  if (slot.has_starts()) PostPlan(slot);
}

void Engine::OnStoreUp(const v1::DescribeResponse& store) {
  store_up_ = true;
  store_ = store;
  for (WorkerSlot& slot : slots_) {
    slot.reconcile = WorkerSlot::Reconcile::kNeeded;  // no call is under way when a store comes up
    MaybeReconcile(slot);
  }
  if (store.pools() < slots_.size()) {
    spdlog::error("the store has {} pools for {} workers", store.pools(), slots_.size());
  }
  CheckServing();
}

void Engine::OnStoreDown(const absl::Status&) {
  store_up_ = false;
  CheckServing();
}

// A pool is reconciled when both its worker and the store are there, and nothing is being allocated
// in it: an owner that is not named loses its blocks.
void Engine::MaybeReconcile(WorkerSlot& slot) {
  if (slot.reconcile != WorkerSlot::Reconcile::kNeeded || !store_up_ || !slot.up() ||
      slot.allocations_under_way > 0 || slot.index() >= store_.pools()) {
    return;
  }
  slot.reconcile = WorkerSlot::Reconcile::kUnderWay;
  v1::ReconcileRequest reconcile;
  reconcile.set_pool(slot.index());
  std::vector<uint64_t> owners;
  for (const auto& [key, request] : requests_) {
    const bool holds = request->phase == Phase::kRunning || request->phase == Phase::kEnding;
    if (holds && request->worker == slot.index()) owners.push_back(request->owner);
  }
  reconcile.mutable_live_owners()->Add(owners.begin(), owners.end());
  options_.store->Reconcile(reconcile, [this, &slot, owners](auto response) {
    OnReconciled(slot, owners, std::move(response));
  });
}

void Engine::OnReconciled(WorkerSlot& slot, const std::vector<uint64_t>& owners,
                          absl::StatusOr<v1::ReconcileResponse> response) {
  const bool again = slot.reconcile != WorkerSlot::Reconcile::kUnderWay;
  slot.reconcile = WorkerSlot::Reconcile::kNeeded;
  if (!response.ok()) {
    spdlog::warn("reconcile of pool {}: {}", slot.index(), response.status().ToString());
    return RetryLater();
  }
  slot.KeepOnly(owners);
  if (response->released_blocks() > 0) {
    spdlog::info("pool {}: {} blocks of unknown owners were released", slot.index(),
                 response->released_blocks());
  }
  if (again || !slot.up()) return MaybeReconcile(slot);
  slot.reconcile = WorkerSlot::Reconcile::kDone;
  CheckServing();
  // Those that came before the sizes were known.
  const std::deque<Waiting> queued = queue_;
  for (const Waiting& waiting : queued) {
    if (auto status = CheckCanEverFit(waiting.need); !status.ok()) Cancel(waiting.key, status);
  }
  Pump();
}

void Engine::NeedReconcile(WorkerSlot& slot) {
  using Reconcile = WorkerSlot::Reconcile;
  const bool under_way =
      slot.reconcile == Reconcile::kUnderWay || slot.reconcile == Reconcile::kNeededAgain;
  slot.reconcile = under_way ? Reconcile::kNeededAgain : Reconcile::kNeeded;
  RetryLater();
}

void Engine::WatchWorkers() {
  for (WorkerSlot& slot : slots_) {
    if (!slot.up() || slot.members().empty()) continue;
    const auto silent = Clock::now() - slot.last_report;
    if (silent < options_.lease) continue;
    spdlog::error("worker {} pid {} has been silent for {} ms: killed", slot.index(),
                  slot.hello().pid(), std::chrono::ceil<std::chrono::milliseconds>(silent).count());
    slot.last_report = Clock::now();  // once a lease
    options_.kill_worker(slot.hello().pid());
  }
  watch_.expires_after(options_.lease / 8);
  watch_.async_wait([this](boost::system::error_code error) {
    if (!error) WatchWorkers();
  });
}

void Engine::RetryLater() {
  if (std::exchange(retry_set_, true)) return;
  retry_.expires_after(kRetry);
  retry_.async_wait([this](boost::system::error_code error) {
    if (error) return;
    retry_set_ = false;
    for (WorkerSlot& slot : slots_) MaybeReconcile(slot);
    Pump();
  });
}

void Engine::CheckServing() {
  const auto ready = [](const WorkerSlot& slot) { return slot.ready(); };
  const bool serving = !draining_ && store_up_ && std::any_of(slots_.begin(), slots_.end(), ready);
  if (std::exchange(serving_, serving) != serving) options_.on_serving(serving);
  if (serving && !was_ready_ && std::all_of(slots_.begin(), slots_.end(), ready)) {
    was_ready_ = true;
    options_.on_ready();
  }
}

// While draining, what cannot run any more is not waited for.
void Engine::CheckIdle() {
  if (!on_idle_) return;
  const bool worker_up =
      std::any_of(slots_.begin(), slots_.end(), [](const WorkerSlot& slot) { return slot.up(); });
  if (!requests_.empty() && !worker_up) {
    auto on_idle = std::exchange(on_idle_, nullptr);
    FailAll(absl::UnavailableError("draining: no worker is left"));
    return on_idle();
  }
  if (requests_.empty()) std::exchange(on_idle_, nullptr)();
}

absl::StatusOr<v1::ModelInfoResponse> Engine::ModelInfo() const {
  if (!model_) return absl::UnavailableError("no worker has said hello yet");
  v1::ModelInfoResponse info = model_->info;
  info.set_default_attention(info.double_sparsity() ? v1::ATTENTION_DOUBLE_SPARSITY
                                                    : v1::ATTENTION_DENSE);
  info.set_default_budget_denominator(model_->default_budget_denominator);
  info.set_default_max_new_tokens(kDefaultMaxNewTokens);
  info.set_workers(static_cast<uint32_t>(slots_.size()));
  if (store_.pools() > 0) {
    info.set_host_row_bytes(uint64_t{store_.pools()} * store_.blocks_per_pool() *
                            store_.bytes_per_block());
    info.set_token_capacity(uint64_t{store_.blocks_per_pool()} * kBlockTokens);
  }
  info.set_version(kVersion);
  return info;
}

absl::Status Engine::Readiness() const {
  if (draining_) return absl::UnavailableError("draining");
  if (!store_up_) return absl::UnavailableError("the store is not there");
  bool any_ready = false;
  for (const WorkerSlot& slot : slots_) {
    any_ready |= slot.ready();
    const double silent = Seconds(Clock::now() - slot.last_report);
    if (slot.up() && !slot.members().empty() && silent > Seconds(kStepLimit)) {
      return absl::UnavailableError(absl::StrCat("worker ", slot.index(), " has made no step for ",
                                                 static_cast<int>(silent), " s"));
    }
  }
  if (!any_ready) return absl::UnavailableError("no worker is there");
  return absl::OkStatus();
}

}  // namespace sparsekv
