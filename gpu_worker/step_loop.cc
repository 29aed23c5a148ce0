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
constexpr uint32_t kMaxPrefetchPercent = 1000;

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
  // What the old session has not been told is nobody's.
  FillLayers();
  FillTransfers();
  stats_.Clear();
  measured_ = false;
  *report_.mutable_hello() = options_.hello;
  Flush();
}

void StepLoop::DropAll() {
  if (!sequences_.empty()) spdlog::info("dropping {} sequences", sequences_.size());
  by_layer_.reset();
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
  const uint32_t scale = options_.device->backend->host_memory() ? 1 : kDevicePrefillScale;
  prefill_unit_tokens_ = std::max(plan.prefill_unit_tokens(), kPrefillAlign) * scale;
  std::vector<LayerPolicy> policies;
  for (const v1::LayerPlan& layer : plan.layers()) {
    const uint32_t percent = layer.prefetch_percent() ? layer.prefetch_percent() : 100;
    policies.push_back({layer.predict(), std::min(percent, kMaxPrefetchPercent),
                        layer.uncorrected() && options_.device->backend->host_memory()});
  }
  options_.device->attention->set_policies(std::move(policies));

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
    sequence = Sequence::Create(start, options_.segment, options_.device);
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

// Prompts in the plan's order, as many as a unit holds. A chunk ends at the prompt's end or at an
// absolute multiple of kPrefillAlign. One that goes layer by layer comes alone.
StepLoop::Batch StepLoop::NextPrompts() {
  Batch batch;
  uint32_t room = std::min(prefill_unit_tokens_, options_.device->plan.max_step_tokens);
  for (uint64_t id : order_) {
    const auto found = sequences_.find(id);
    if (found == sequences_.end() || !found->second->prefilling()) continue;
    Sequence& sequence = *found->second;
    if (sequence.prefills_by_layer()) {
      if (batch.empty()) batch.emplace_back(&sequence, sequence.prompt_tokens());
      break;
    }
    const uint32_t from = sequence.computed();
    uint32_t end = sequence.prompt_tokens();
    if (end - from > room) end = (from + room) / kPrefillAlign * kPrefillAlign;
    if (end <= from) break;
    batch.emplace_back(&sequence, end - from);
    room -= end - from;
  }
  return batch;
}

void StepLoop::PrefillUnit() {
  Batch batch = NextPrompts();
  if (batch.empty()) return;
  if (batch[0].first->prefills_by_layer()) return PrefillByLayer(*batch[0].first);
  Run(batch, StepKind::kPrompt);
}

void StepLoop::PrefillByLayer(Sequence& sequence) {
  Device& device = *options_.device;
  Model& model = *device.model;
  const uint32_t tokens = sequence.prompt_tokens(), layers = model.config().layers;
  if (!by_layer_ || by_layer_id_ != sequence.id()) {
    if (absl::Status status = sequence.Prepare(tokens); !status.ok()) {
      return End(sequence.id(), v1::FINISH_REASON_ERROR, status);
    }
    by_layer_ = std::make_unique<LayerwisePrefill>(
        &model, tokens, device.plan.max_step_tokens / kPrefillAlign * kPrefillAlign,
        device.prompt_hidden);
    by_layer_id_ = sequence.id();
  }
  SampledToken token;
  model.BeginStep(StepKind::kPrompt);
  const StepItem prompt = sequence.Item(tokens);
  by_layer_->Run(prompt, uint64_t{prefill_unit_tokens_} * layers);
  const bool done = by_layer_->done();
  if (done) {
    const float* logits = model.Logits(by_layer_->last_token(), 1);
    const SampleArgs args = sequence.Sampling(logits, model.config().vocab_size);
    model.backend().Sample({&args, 1}, &token);
  }
  model.EndStep();
  if (!done) return;
  by_layer_.reset();
  sequence.Advance(tokens);
  stats_.set_prefill_tokens(stats_.prefill_tokens() + tokens);
  Accept(sequence, token);
}

void StepLoop::DecodeStep() {
  Batch batch;
  for (const auto& [id, sequence] : sequences_) {
    if (!sequence->prefilling()) batch.emplace_back(sequence.get(), 1);
  }
  if (batch.empty()) return;
  Model& model = *options_.device->model;
  model.set_measure(!measured_);
  Run(batch, StepKind::kDecode);
  model.set_measure(false);
  if (!batch.empty()) measured_ = true;
}

void StepLoop::Run(Batch& batch, StepKind kind) {
  std::erase_if(batch, [this](auto& entry) {
    const absl::Status status = entry.first->Prepare(entry.second);
    if (!status.ok()) End(entry.first->id(), v1::FINISH_REASON_ERROR, status);
    return !status.ok();
  });
  if (batch.empty()) return;
  std::vector<StepItem> items;
  std::vector<uint32_t> drawing, last;
  uint32_t end = 0;
  for (uint32_t i = 0; i < batch.size(); ++i) {
    const auto& [sequence, tokens] = batch[i];
    items.push_back(sequence->Item(tokens));
    end += tokens;
    if (sequence->computed() + tokens < sequence->prompt_tokens()) continue;
    drawing.push_back(i);
    last.push_back(end - 1);
  }
  std::vector<SampledToken> tokens(drawing.size());
  Model& model = *options_.device->model;
  model.BeginStep(kind);
  model.Forward(items);
  Draw(batch, kind, drawing, last, &tokens);
  model.EndStep();
  for (auto& [sequence, count] : batch) {
    sequence->Advance(count);
    if (kind == StepKind::kPrompt) stats_.set_prefill_tokens(stats_.prefill_tokens() + count);
  }
  for (size_t n = 0; n < drawing.size(); ++n) Accept(*batch[drawing[n]].first, tokens[n]);
}

void StepLoop::Draw(const Batch& batch, StepKind kind, const std::vector<uint32_t>& drawing,
                    const std::vector<uint32_t>& last, std::vector<SampledToken>* tokens) {
  Model& model = *options_.device->model;
  const uint32_t vocab = model.config().vocab_size;
  if (kind == StepKind::kPrompt) {  // few, and far apart
    for (size_t n = 0; n < drawing.size(); ++n) {
      const SampleArgs args = batch[drawing[n]].first->Sampling(model.Logits(last[n], 1), vocab);
      model.backend().Sample({&args, 1}, &(*tokens)[n]);
    }
    return;
  }
  const float* logits = model.Logits(0, static_cast<uint32_t>(batch.size()));
  std::vector<SampleArgs> args;
  for (const auto& [sequence, count] : batch) {
    args.push_back(sequence->Sampling(logits + args.size() * vocab, vocab));
  }
  model.backend().Sample(args, tokens->data());
}

void StepLoop::Accept(Sequence& sequence, const SampledToken& token) {
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
  if (by_layer_ && by_layer_id_ == id) by_layer_.reset();
  sequences_.erase(found);
}

void StepLoop::CloseEpoch(bool exhausted) {
  FillLayers();
  FillTransfers();
  for (const Device::MemoryUse& use : options_.device->Memory()) {
    auto* memory = stats_.add_device_memory();
    memory->set_kind(use.kind);
    memory->set_bytes(use.bytes);
    memory->set_used_bytes(use.used_bytes);
  }
  stats_.set_plan_exhausted(exhausted);
  *report_.mutable_stats() = stats_;
  stats_.Clear();
  measured_ = false;
}

void StepLoop::FillLayers() {
  for (LayerCounts& counts : options_.device->attention->counts()) {
    auto* layer = stats_.add_layers();
    layer->set_selected(counts.rows.selected);
    layer->set_hits(counts.rows.hits);
    layer->set_prefetched(counts.rows.prefetched);
    layer->set_useful(counts.rows.useful);
    layer->set_missed(counts.rows.missed);
    layer->set_cut(counts.cut);
    layer->set_stall_s(counts.rows.stall_s);
    layer->set_similarity_sum(counts.similarity_sum);
    layer->set_similarity_count(counts.similarity_count);
    layer->set_predicted(counts.predicted);
    layer->set_predicted_selected(counts.predicted_selected);
    layer->set_recall_sum(counts.recall_sum);
    layer->set_recall_samples(counts.recall_samples);
    layer->set_fell_back(counts.fell_back);
    counts = LayerCounts{};
  }
}

void StepLoop::FillTransfers() {
  const Device& device = *options_.device;
  Transfers now = {.direct_bytes = device.attention->direct_bytes()};
  if (device.prefetcher) {
    now.direct_bytes += device.prefetcher->direct_bytes();
    now.gather_bytes = device.prefetcher->gather_bytes();
  }
  if (device.link) now.link_s = device.link->busy_seconds();
  if (options_.segment->gather()) {
    const auto gather = options_.segment->gather()->counters();
    now.expired = gather.expired;
    now.refused = gather.refused;
  }
  stats_.set_direct_bytes(now.direct_bytes - reported_.direct_bytes);
  stats_.set_gather_bytes(now.gather_bytes - reported_.gather_bytes);
  stats_.set_link_s(now.link_s - reported_.link_s);
  stats_.set_gather_expired(now.expired - reported_.expired);
  stats_.set_gather_refused(now.refused - reported_.refused);
  reported_ = now;
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
