#include "gpu_worker/step_loop.h"

#include <algorithm>
#include <chrono>
#include <set>

#include "base/check.h"
#include "base/ids.h"
#include "base/log.h"

namespace sparsekv {

namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kIdleWait{200};  // how often an idle worker looks at the store
constexpr std::chrono::seconds kHeartbeat{1};        // longest silence of a worker that computes

}  // namespace

StepLoop::StepLoop(Options options) : options_(std::move(options)) {
  // The coordinator takes a worker that is silent under work for hung.
  options_.device->model->set_progress([this] {
    if (Clock::now() - flushed_ >= kHeartbeat) Flush(/*heartbeat=*/true);
  });
}

absl::Status StepLoop::Run() {
  auto store_seen = Clock::now();
  while (!stopping_) {
    if (!HasWork()) {
      if (auto command = options_.inbox->PopFor(kIdleWait)) Apply(std::move(*command));
    }
    while (auto command = options_.inbox->TryPop()) Apply(std::move(*command));
    if (Clock::now() - store_seen >= kIdleWait) {
      if (absl::Status status = WatchStore(); !status.ok()) return status;
      store_seen = Clock::now();
    }
    if (!stopping_ && HasWork()) Step();
  }
  return absl::OkStatus();
}

// The segment outlives the store, so sequences go on while a new store starts; only another segment
// is the end.
absl::Status StepLoop::WatchStore() {
  if (options_.segment->store_alive()) return absl::OkStatus();
  absl::Status status = options_.segment->Reattach();
  if (status.ok()) {
    spdlog::info("attached to store {}", HexId(options_.segment->store_boot_id()));
  } else if (!absl::IsUnavailable(status)) {
    return status;
  }
  return absl::OkStatus();
}

void StepLoop::Apply(WorkerCommand command) {
  if (auto* opened = std::get_if<SessionOpened>(&command)) {
    OnOpened(opened->session);
  } else if (auto* closed = std::get_if<SessionClosed>(&command)) {
    if (closed->session != session_) return;
    DropAll();
    session_ = 0;
  } else if (auto* arrived = std::get_if<PlanArrived>(&command)) {
    if (arrived->session == session_) OnPlan(arrived->plan);
  } else {
    stopping_ = true;
  }
}

void StepLoop::OnOpened(uint64_t session) {
  DropAll();
  session_ = session;
  epoch_ = 0;
  steps_left_ = 0;
  stats_.Clear();
  *report_.mutable_hello() = options_.hello;
  Flush();
}

void StepLoop::DropAll() {
  if (!sequences_.empty()) spdlog::info("dropping {} sequences", sequences_.size());
  sequences_.clear();
  order_.clear();
  report_.Clear();
}

void StepLoop::OnPlan(const v1::Plan& plan) {
  if (plan.epoch() <= epoch_) {
    spdlog::warn("plan {} came after plan {}", plan.epoch(), epoch_);
    return;
  }
  if (stats_.steps() > 0) CloseEpoch(/*exhausted=*/false);
  epoch_ = plan.epoch();
  epoch_steps_ = steps_left_ = std::clamp(plan.valid_steps(), 1u, 1u << 16);
  prefill_unit_tokens_ = std::max(plan.prefill_unit_tokens(), kPrefillAlign);

  const std::set<uint64_t> members(plan.members().begin(), plan.members().end());
  std::vector<uint64_t> dropped;
  for (const auto& [id, sequence] : sequences_) {
    if (!members.contains(id)) dropped.push_back(id);
  }
  for (uint64_t id : dropped) End(id, v1::FINISH_REASON_CANCELLED);
  for (const v1::SequenceStart& start : plan.starts()) Start(start);
  order_.assign(plan.members().begin(), plan.members().end());
  Flush();
}

void StepLoop::Start(const v1::SequenceStart& start) {
  absl::StatusOr<std::unique_ptr<Sequence>> sequence;
  if (sequences_.size() >= options_.device->plan.max_batch) {
    sequence = absl::ResourceExhaustedError("max_batch: the worker runs as many as it can");
  } else if (sequences_.contains(start.sequence_id())) {
    sequence = absl::AlreadyExistsError("sequence_id: runs already");
  } else {
    sequence = Sequence::Create(start, *options_.device->model, options_.segment,
                                options_.device->labels.get());
  }
  if (sequence.ok()) {
    sequences_.emplace(start.sequence_id(), *std::move(sequence));
    return;
  }
  auto* end = report_.add_ends();
  end->set_sequence_id(start.sequence_id());
  end->set_reason(v1::FINISH_REASON_ERROR);
  end->set_error_code(static_cast<int>(sequence.status().code()));
  end->set_error(std::string(sequence.status().message()));
}

void StepLoop::Step() {
  const auto begin = Clock::now();
  PrefillUnit();
  DecodeStep();
  stats_.set_steps(stats_.steps() + 1);
  stats_.set_busy_s(stats_.busy_s() + std::chrono::duration<double>(Clock::now() - begin).count());
  --steps_left_;
  // Half way the coordinator is told, so that the next plan is here before this one is used up; and
  // when nothing is left to do, so that its figures are whole.
  if (steps_left_ == 0) {
    CloseEpoch(/*exhausted=*/true);
  } else if (steps_left_ == epoch_steps_ / 2 || sequences_.empty()) {
    CloseEpoch(/*exhausted=*/false);
  }
  Flush();
}

// At most prefill_unit_tokens tokens of prompts, in the plan's order. A chunk ends at the prompt's
// end or at an absolute multiple of kPrefillAlign.
void StepLoop::PrefillUnit() {
  std::vector<std::pair<Sequence*, uint32_t>> batch;
  uint32_t room = std::min(prefill_unit_tokens_, options_.device->plan.max_step_tokens);
  for (uint64_t id : order_) {
    const auto found = sequences_.find(id);
    if (found == sequences_.end() || !found->second->prefilling()) continue;
    Sequence& sequence = *found->second;
    const uint32_t from = sequence.computed();
    uint32_t end = sequence.prompt_tokens();
    if (end - from > room) end = (from + room) / kPrefillAlign * kPrefillAlign;
    if (end <= from) break;
    batch.emplace_back(&sequence, end - from);
    room -= end - from;
  }
  if (batch.empty()) return;
  Forward(batch);
  uint32_t token = 0;
  for (auto& [sequence, tokens] : batch) {
    token += tokens;
    stats_.set_prefill_tokens(stats_.prefill_tokens() + tokens);
    if (!sequence->prefilling()) {
      SampleNext(*sequence, options_.device->model->Logits(token - 1, 1));
    }
  }
}

void StepLoop::DecodeStep() {
  std::vector<std::pair<Sequence*, uint32_t>> batch;
  for (const auto& [id, sequence] : sequences_) {
    if (!sequence->prefilling()) batch.emplace_back(sequence.get(), 1);
  }
  if (batch.empty()) return;
  Forward(batch);
  if (batch.empty()) return;
  Model& model = *options_.device->model;
  const float* logits = model.Logits(0, static_cast<uint32_t>(batch.size()));
  for (size_t i = 0; i < batch.size(); ++i) {
    SampleNext(*batch[i].first, logits + i * model.config().vocab_size);
  }
}

void StepLoop::Forward(std::vector<std::pair<Sequence*, uint32_t>>& batch) {
  std::erase_if(batch, [this](auto& entry) {
    const absl::Status status = entry.first->Prepare(entry.second);
    if (!status.ok()) End(entry.first->id(), v1::FINISH_REASON_ERROR, status);
    return !status.ok();
  });
  if (batch.empty()) return;
  std::vector<StepItem> items;
  uint64_t rows = 0;
  const ModelConfig& config = options_.device->model->config();
  for (auto& [sequence, tokens] : batch) {
    items.push_back(sequence->Item(tokens));
    if (!sequence->prefilling()) {
      rows += items.back().rows_per_head() * config.layers * config.kv_heads;
    }
  }
  options_.device->model->Forward(items);
  for (auto& [sequence, tokens] : batch) sequence->Advance(tokens);

  stats_.set_rows_selected(stats_.rows_selected() + rows);
  stats_.set_rows_fetched(stats_.rows_fetched() + rows);
  stats_.set_fetch_bytes(stats_.fetch_bytes() + rows * options_.segment->layout().row_bytes());
}

void StepLoop::SampleNext(Sequence& sequence, const float* logits) {
  Model& model = *options_.device->model;
  const SampledToken token =
      model.backend().Sample(sequence.Sampling(logits, model.config().vocab_size));
  const v1::FinishReason reason = sequence.Accept(token, report_.add_tokens());
  stats_.set_tokens(stats_.tokens() + 1);
  if (reason != v1::FINISH_REASON_UNSPECIFIED) End(sequence.id(), reason);
}

void StepLoop::End(uint64_t id, v1::FinishReason reason, const absl::Status& error) {
  const auto found = sequences_.find(id);
  CHECK(found != sequences_.end());
  auto* end = report_.add_ends();
  found->second->FillEnd(reason, end);
  end->set_error_code(static_cast<int>(error.code()));
  end->set_error(std::string(error.message()));
  sequences_.erase(found);
}

void StepLoop::CloseEpoch(bool exhausted) {
  const LabelPool& labels = *options_.device->labels;
  stats_.set_label_pages_free(labels.free_pages());
  stats_.set_label_bytes((labels.total_pages() - labels.free_pages()) *
                         labels.layout().page_bytes());
  stats_.set_plan_exhausted(exhausted);
  *report_.mutable_stats() = stats_;
  stats_.Clear();
}

void StepLoop::Flush(bool heartbeat) {
  if (!heartbeat && !report_.has_hello() && !report_.has_stats() && report_.tokens().empty() &&
      report_.ends().empty()) {
    return;
  }
  report_.set_worker_boot_id(options_.boot_id);
  report_.set_epoch(epoch_);
  options_.sink->Send(session_, std::move(report_));
  report_.Clear();
  flushed_ = Clock::now();
}

}  // namespace sparsekv
