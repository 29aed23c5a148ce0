#include "gpu_worker/sequence.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "gpu_worker/backend_limits.h"

namespace sparsekv {

namespace {

double Seconds(Sequence::Clock::duration d) { return std::chrono::duration<double>(d).count(); }

absl::Status Validate(const v1::SequenceStart& start, const ModelConfig& config) {
  if (start.prompt_ids().empty()) return absl::InvalidArgumentError("prompt_ids: is empty");
  for (uint32_t id : start.prompt_ids()) {
    if (id >= config.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(
          "prompt_ids: ", id, " is not below the vocabulary size ", config.vocab_size));
    }
  }
  if (start.max_new_tokens() == 0) return absl::InvalidArgumentError("max_new_tokens: 0");
  const uint64_t tokens = uint64_t(start.prompt_ids_size()) + start.max_new_tokens();
  if (tokens > config.max_context) {
    return absl::InvalidArgumentError(absl::StrCat("max_new_tokens: prompt and completion of ",
                                                   tokens, " tokens exceed the context ",
                                                   config.max_context));
  }
  const uint64_t granted = uint64_t(start.blocks_size()) * kBlockTokens;
  if (granted < tokens || start.blocks_size() != start.generations_size()) {
    return absl::InvalidArgumentError(absl::StrCat("blocks: ", start.blocks_size(), " blocks and ",
                                                   start.generations_size(), " generations for ",
                                                   tokens, " tokens"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Sequence>> Sequence::Create(const v1::SequenceStart& start,
                                                           kv_store::SegmentClient* segment,
                                                           Device* device) {
  const ModelConfig& config = device->model->config();
  if (absl::Status status = Validate(start, config); !status.ok()) return status;
  std::unique_ptr<Sequence> sequence(new Sequence(start, segment, device));
  if (start.attention() == v1::ATTENTION_DOUBLE_SPARSITY) {
    if (!device->attention->can_select()) {
      return absl::FailedPreconditionError("attention: double-sparsity needs a channel config");
    }
    sequence->budget_ = {.rows = start.budget().rows(),
                         .denominator = start.budget().fraction_denominator()};
    if (sequence->budget_.dense()) return absl::InvalidArgumentError("budget: 0");
  }
  if (absl::Status status = sequence->SetRecall(); !status.ok()) return status;
  if (absl::Status status = sequence->TakeDeviceMemory(); !status.ok()) return status;
  return sequence;
}

Sequence::Sequence(const v1::SequenceStart& start, kv_store::SegmentClient* segment, Device* device)
    : start_(start),
      prompt_tokens_(static_cast<uint32_t>(start.prompt_ids_size())),
      ids_(start.prompt_ids().begin(), start.prompt_ids().end()),
      rows_(segment, start.owner(), {start.blocks().begin(), start.blocks().end()},
            {start.generations().begin(), start.generations().end()}),
      generations_(start.generations().begin(), start.generations().end()),
      device_(device) {
  ids_.reserve(ids_.size() + start.max_new_tokens());
  start_.clear_prompt_ids();
}

absl::Status Sequence::SetRecall() {
  const double target = start_.recall_target();
  if (!(target >= 0 && target < 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("recall_target: ", target, " is not within (0, 1)"));
  }
  if (target > 0 && budget_.dense()) {
    return absl::InvalidArgumentError("recall_target: needs attention double-sparsity");
  }
  const Backend& backend = *device_->backend;
  if (const std::string why = WhyNoRecallTarget(backend); target > 0 && !why.empty()) {
    return absl::FailedPreconditionError(why);
  }
  if (budget_.dense() || !backend.host_memory()) return absl::OkStatus();
  recall_.emplace(device_->model->config().layers, prompt_tokens_, target);
  return absl::OkStatus();
}

absl::Status Sequence::TakeDeviceMemory() {
  if (absl::Status status = device_->UseBlocks(rows_.blocks()); !status.ok()) return status;
  tables_ = device_->tables->Take();
  block_table_ = tables_.Put(rows_.blocks());
  const uint32_t tokens = prompt_tokens_ + start_.max_new_tokens();
  if (!budget_.dense()) {
    const uint32_t pages = (tokens + kBlockTokens - 1) / kBlockTokens;
    if (!device_->labels->Take(pages, label_pages_)) {
      return absl::ResourceExhaustedError(absl::StrCat("label cache: ", pages, " pages needed, ",
                                                       device_->labels->free_pages(), " are free"));
    }
    label_table_ = tables_.Put(label_pages_);
  }
  if (!device_->rows) {
    if (start_.placement() != v1::PLACEMENT_RESIDENT) return absl::OkStatus();
    return absl::FailedPreconditionError("placement: resident, but this worker keeps no rows");
  }
  const bool resident = start_.placement() == v1::PLACEMENT_RESIDENT;
  const uint32_t selection = budget_.dense() ? 0 : budget_.At(tokens);
  if (!resident && selection > DeviceRows::kMostSelected) {
    return absl::InvalidArgumentError(absl::StrCat("budget: ", selection,
                                                   " rows, an offloaded sequence selects at most ",
                                                   DeviceRows::kMostSelected));
  }
  if (!device_->rows->Take(resident ? RowPlacement::kResident : RowPlacement::kOffload, tokens,
                           selection, &tables_, &rows_on_device_)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("device rows: ", tokens, " tokens do not fit, ", device_->rows->free_blocks(),
                     " of ", device_->rows->total_blocks(), " blocks are free"));
  }
  return absl::OkStatus();
}

Sequence::~Sequence() {
  device_->labels->Return(label_pages_);
  if (device_->rows) device_->rows->Return(&rows_on_device_);
}

StepItem Sequence::Item(uint32_t tokens) {
  CHECK_LE(computed_ + tokens, ids_.size());
  return {
      .ids = std::span(ids_).subspan(computed_, tokens),
      .position = computed_,
      .blocks = block_table_,
      .label_pages = label_table_,
      .budget = prefilling() ? RowBudget{} : budget_,
      .device = rows_on_device_.device ? &rows_on_device_ : nullptr,
      .prefill_block = prefills_by_layer() ? 0 : kNoPrefill,
      .owner = start_.owner(),
      .generations = generations_.data(),
      .counts = prefilling() ? nullptr : &counts_,
      .recall = prefilling() || !recall_ ? nullptr : &*recall_,
      .long_rope = device_->model->config().long_rope(prompt_tokens_ + start_.max_new_tokens())};
}

void Sequence::Advance(uint32_t tokens) {
  rows_.Publish(computed_, tokens);
  computed_ += tokens;
}

SampleArgs Sequence::Sampling(const float* logits, uint32_t vocab) const {
  return {.logits = logits,
          .vocab = vocab,
          .position = static_cast<uint32_t>(ids_.size()),
          .params = {.temperature = start_.temperature(),
                     .top_p = start_.top_p(),
                     .top_k = start_.top_k(),
                     .seed = start_.seed()},
          .top_logprobs = start_.top_logprobs()};
}

v1::FinishReason Sequence::Accept(const SampledToken& token, v1::TokenEvent* event) {
  last_token_ = Clock::now();
  if (generated() == 0) first_token_ = last_token_;
  event->set_sequence_id(id());
  event->set_index(generated());
  event->set_token_id(token.id);
  if (start_.want_logprobs()) {
    auto* logprobs = event->mutable_logprobs();
    logprobs->mutable_chosen()->set_token_id(token.id);
    logprobs->mutable_chosen()->set_logprob(token.logprob);
    for (const auto& [top_id, logprob] : token.top) {
      auto* entry = logprobs->add_top();
      entry->set_token_id(top_id);
      entry->set_logprob(logprob);
    }
  }
  ids_.push_back(token.id);
  const auto& stops = start_.stop_token_ids();
  if (std::find(stops.begin(), stops.end(), token.id) != stops.end()) {
    return v1::FINISH_REASON_STOP;
  }
  return generated() >= start_.max_new_tokens() ? v1::FINISH_REASON_LENGTH
                                                : v1::FINISH_REASON_UNSPECIFIED;
}

void Sequence::FillRecall(v1::Sparsity* sparsity) const {
  const uint64_t samples = recall_->samples();
  if (samples > 0) sparsity->set_attention_recall(recall_->sum() / static_cast<double>(samples));
  sparsity->set_recall_samples(samples);
  if (!recall_->adaptive()) return;
  sparsity->set_recall_target(recall_->target());
  sparsity->set_dense_layers(recall_->whole_layers());
  if (recall_->mean_rows() > 0) sparsity->set_budget_effective(recall_->mean_rows());
}

void Sequence::FillEnd(v1::FinishReason reason, v1::SequenceEnd* end) const {
  end->set_sequence_id(id());
  end->set_reason(reason);
  end->set_generated(generated());
  auto* sparsity = end->mutable_sparsity();
  sparsity->set_attention(start_.attention());
  // Of the layers that see most: in a window there is less to attend.
  const uint32_t last = std::max(computed_, 1u) - 1;
  const uint32_t begin = FirstInWindow(last, device_->model->config().widest_window());
  sparsity->set_budget_effective(budget_.dense() ? computed_ - begin : budget_.At(last + 1, begin));
  if (recall_) FillRecall(sparsity);
  sparsity->set_rows_selected(counts_.selected);
  sparsity->set_rows_fetched(counts_.useful + counts_.missed);
  sparsity->set_hits(counts_.hits);
  sparsity->set_misses(counts_.missed);
  sparsity->set_prefetch_useful(counts_.useful);
  sparsity->set_device_kv_bytes(label_pages_.size() * device_->labels->page_bytes() +
                                rows_on_device_.bytes());
  sparsity->set_host_kv_bytes(rows_.bytes());
  const Clock::time_point first = generated() ? first_token_ : Clock::now();
  end->set_prefill_s(Seconds(first - started_));
  end->set_decode_s(generated() ? Seconds(last_token_ - first_token_) : 0.0);
  end->set_stall_s(counts_.stall_s);
}

}  // namespace sparsekv
