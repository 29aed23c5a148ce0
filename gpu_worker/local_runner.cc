#include "gpu_worker/local_runner.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "gpu_worker/layerwise_prefill.h"

namespace sparsekv {

namespace {

constexpr unsigned kGatherThreads = 1;

uint32_t Pages(uint32_t tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; }

}  // namespace

absl::StatusOr<std::unique_ptr<LocalRunner>> LocalRunner::Make(const ModelFiles& files,
                                                               const Options& options) {
  std::unique_ptr<LocalRunner> runner(new LocalRunner());
  runner->options_ = options;
  runner->segment_ = kv_store::SegmentClient::MakeLocal(
      files.Layout(Pages(options.max_tokens) * options.sequences), files.weights->fingerprint());
  if (options.gather) runner->segment_->StartLocalGather(kGatherThreads);
  const DeviceRows::Need need =
      DeviceRows::NeedOf(files.config.layers, options.rows.hot_rows, options.placement,
                         options.max_tokens, options.selection);
  const bool cuda = options.backend == BackendKind::kCuda;
  Device::Options device_options{.device_bytes = cuda ? 0 : SIZE_MAX / 2,
                                 .max_batch = options.sequences,
                                 .prefill_unit_tokens = options.chunk_tokens,
                                 .threads = options.threads,
                                 .backend = options.backend,
                                 .graphs = options.graphs,
                                 .early_launch = options.early_launch,
                                 .exact_prompts = options.exact_prompts,
                                 .mirror_rows = options.mirror_rows,
                                 .make_backend = options.make_backend,
                                 .share_chunk_bytes = options.share_chunk_bytes,
                                 .row_layout = runner->segment_->layout(),
                                 .row_pool = runner->segment_->rows(),
                                 .rows = options.rows,
                                 .selection = options.selection,
                                 .row_blocks = options.sequences * need.blocks(),
                                 .link = options.link,
                                 .gather = options.gather ? runner->segment_->gather() : nullptr,
                                 .timeline = options.timeline};
  auto device = Device::Make(files, device_options);
  if (!device.ok()) return device.status();
  runner->device_ = *std::move(device);
  if (absl::Status status = runner->AddSequences(files, options); !status.ok()) return status;
  return runner;
}

absl::Status LocalRunner::AddSequences(const ModelFiles& files, const Options& options) {
  sequences_.resize(options.sequences);
  for (uint32_t i = 0; i < options.sequences; ++i) {
    Sequence& sequence = sequences_[i];
    auto grant = segment_->Grant(options.max_tokens, i + 1);
    if (!grant.ok()) return grant.status();
    sequence.generations = grant->generations;
    sequence.rows =
        std::make_unique<SequenceRows>(segment_.get(), i + 1, grant->blocks, grant->generations);
    if (absl::Status status = device_.UseBlocks(grant->blocks); !status.ok()) return status;
    sequence.tables = device_.tables->Take();
    sequence.block_table = sequence.tables.Put(sequence.rows->blocks());
    if (files.channels) {
      CHECK(device_.labels->Take(Pages(options.max_tokens), sequence.label_pages));
      sequence.label_table = sequence.tables.Put(sequence.label_pages);
    }
    if (device_.rows &&
        !device_.rows->Take(options.placement, options.max_tokens, options.selection,
                            &sequence.tables, &sequence.device)) {
      return absl::ResourceExhaustedError("device rows: too few");
    }
  }
  return absl::OkStatus();
}

LocalRunner::~LocalRunner() {
  for (Sequence& sequence : sequences_) {
    if (device_.labels) device_.labels->Return(sequence.label_pages);
    if (device_.rows) device_.rows->Return(&sequence.device);
  }
}

void LocalRunner::Rewind(uint32_t position) {
  sequences_[0].position = position;
  sequences_[0].recall.reset();
  // Rows that are forgotten may be in slots.
  if (device_.rows) device_.rows->Clear(sequences_[0].device);
}

StepItem LocalRunner::Item(const Step& step) {
  Sequence& sequence = sequences_[step.sequence];
  const auto count = static_cast<uint32_t>(step.ids.size());
  const absl::Status status = sequence.rows->Prepare(sequence.position, count);
  CHECK(status.ok());
  const bool samples = options_.recall_target && !step.budget.dense();
  if (samples && !sequence.recall) {
    sequence.recall.emplace(device_.model->config().layers, sequence.position,
                            *options_.recall_target);
  }
  return {.ids = step.ids,
          .position = sequence.position,
          .blocks = sequence.block_table,
          .label_pages = sequence.label_table,
          .budget = step.budget,
          .device = device_.rows ? &sequence.device : nullptr,
          .owner = step.sequence + 1,
          .generations = sequence.generations.data(),
          .counts = count == 1 ? &sequence.counts : nullptr,
          .recall = samples ? &*sequence.recall : nullptr,
          .long_rope = device_.model->config().long_rope(options_.max_tokens)};
}

void LocalRunner::Forward(std::span<const uint32_t> ids, RowBudget budget) {
  const Step step = {0, ids, budget};
  ForwardBatch({&step, 1});
}

void LocalRunner::ForwardBatch(std::span<const Step> steps, bool draw) {
  const bool decode =
      std::ranges::all_of(steps, [](const Step& step) { return step.ids.size() == 1; });
  RunSteps(steps, decode ? StepKind::kDecode : StepKind::kPrompt, draw);
}

void LocalRunner::RunSteps(std::span<const Step> steps, StepKind kind, bool draw) {
  std::vector<StepItem> items;
  for (const Step& step : steps) items.push_back(Item(step));
  Run(items, kind, draw);
  for (const Step& step : steps) {
    Sequence& sequence = sequences_[step.sequence];
    const auto count = static_cast<uint32_t>(step.ids.size());
    sequence.rows->Publish(sequence.position, count);
    sequence.position += count;
  }
}

void LocalRunner::Run(std::span<const StepItem> items, StepKind kind, bool draw) {
  kind_ = kind;
  CHECK(kind == StepKind::kDecode || !draw);
  Model& model = *device_.model;
  model.BeginStep(kind);
  model.Forward(items);
  drawn_.assign(draw ? items.size() : 0, {});
  if (draw) {
    const uint32_t vocab = model.config().vocab_size;
    const float* logits = model.Logits(0, static_cast<uint32_t>(items.size()));
    std::vector<SampleArgs> args;
    for (size_t i = 0; i < items.size(); ++i) {
      args.push_back({.logits = logits + i * vocab, .vocab = vocab});
    }
    device_.backend->Sample(args, drawn_.data());
  }
  model.EndStep();
}

// A step of its own, of the kind that the pass was.
const float* LocalRunner::Logits(uint32_t i) {
  Model& model = *device_.model;
  if (device_.backend->host_memory()) return model.Logits(i, 1);
  const size_t vocab = model.config().vocab_size;
  logits_.resize(vocab);
  device_.backend->BeginStep(kind_);
  device_.backend->Fetch(logits_.data(), model.Logits(i, 1), vocab * sizeof(float));
  device_.backend->EndStep();
  return logits_.data();
}

const float* LocalRunner::Prefill(uint32_t index, std::span<const uint32_t> ids) {
  Sequence& sequence = sequences_[index];
  CHECK_EQ(sequence.position, 0u);
  const auto tokens = static_cast<uint32_t>(ids.size());
  if (!device_.rows || sequence.device.resident()) {
    uint32_t last = 0;
    for (uint32_t from = 0; from < tokens; from += options_.chunk_tokens) {
      const Step step = {index, ids.subspan(from, std::min(options_.chunk_tokens, tokens - from)),
                         RowBudget{}};
      RunSteps({&step, 1}, StepKind::kPrompt, false);
      last = static_cast<uint32_t>(step.ids.size()) - 1;
    }
    return Logits(last);
  }
  StepItem item = Item({index, ids, RowBudget{}});
  item.counts = nullptr;
  item.prefill_block = 0;
  LayerwisePrefill prefill(device_.model.get(), tokens, options_.chunk_tokens,
                           device_.prompt_hidden);
  kind_ = StepKind::kPrompt;
  while (!prefill.done()) {
    device_.model->BeginStep(StepKind::kPrompt);
    prefill.Run(item, options_.chunk_tokens);
    device_.model->EndStep();
  }
  sequence.rows->Publish(0, tokens);
  sequence.position = tokens;
  return Logits(prefill.last_token());
}

void LocalRunner::CopyFrom(const LocalRunner& other) {
  const uint32_t layers = device_.model->config().layers;
  CHECK_LE(sequences_.size(), other.sequences_.size());
  for (uint32_t i = 0; i < sequences_.size(); ++i) {
    Sequence& to = sequences_[i];
    const Sequence& from = other.sequences_[i];
    CHECK_EQ(to.generations.size(), from.generations.size());
    CHECK(to.rows->Prepare(0, from.position).ok());
    const size_t page_bytes = device_.labels->page_bytes();
    std::vector<std::byte> page_copy(page_bytes);
    for (size_t page = 0; page < to.label_pages.size(); ++page) {
      other.device_.backend->Download(page_copy.data(), from.label_pages[page], page_bytes);
      device_.backend->Upload(to.label_pages[page], page_copy.data(), page_bytes);
    }
    const size_t block_bytes = segment_->layout().block_stride();
    std::byte* mirror = device_.shared_rows ? device_.shared_rows->mirror() : nullptr;
    for (uint32_t layer = 0; layer < layers; ++layer) {
      const RowTable source = other.HostRows(layer, i), target = HostRows(layer, i);
      for (uint32_t token = 0; token < from.position; token += kBlockTokens) {
        std::memcpy(target.Row(0, token), source.Row(0, token), block_bytes);
        if (mirror) {
          const std::ptrdiff_t place = target.Row(0, token) - segment_->rows();
          std::memcpy(mirror + place, source.Row(0, token), block_bytes);
        }
        if (!to.device.device || !to.device.resident()) continue;
        device_.backend->Upload(to.device.ResidentBlock(layer, token / kBlockTokens),
                                source.Row(0, token), block_bytes);
      }
    }
    to.rows->Publish(0, from.position);
    to.position = from.position;
  }
}

void LocalRunner::Seek(uint32_t sequence, uint32_t position) {
  Sequence& to = sequences_[sequence];
  CHECK(to.rows->Prepare(0, position).ok());
  to.rows->Publish(0, position);
  to.position = position;
}

const SequenceRecall* LocalRunner::recall(uint32_t sequence) const {
  const auto& recall = sequences_[sequence].recall;
  return recall ? &*recall : nullptr;
}

RowTable LocalRunner::HostRows(uint32_t layer, uint32_t sequence) const {
  const RowLayout& layout = segment_->layout();
  return {segment_->rows() + layer * layout.layer_stride(),
          sequences_[sequence].rows->blocks().data(), &layout};
}

LabelTable LocalRunner::Labels(uint32_t layer, uint32_t sequence) const {
  return {sequences_[sequence].label_pages.data(), &device_.attention->label_layout(), layer};
}

}  // namespace sparsekv
