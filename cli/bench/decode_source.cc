#include "cli/bench/decode_source.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "cli/bench/random_model.h"
#include "cli/bench/selection_trace.h"
#include "cli/commands.h"
#include "cli/local_memory.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "kernels/half.h"

namespace sparsekv {

namespace {

// Steps on which the walk's cosine is judged.
constexpr uint32_t kProbeSteps = 4;

Encoding EncodingOf(const std::string& weights) {
  if (weights == "int8") return Encoding::kInt8;
  if (weights == "int4") return Encoding::kInt4;
  return weights == "fp8" ? Encoding::kFp8 : Encoding::kPlain;
}

// Random weights; rows and labels made up; queries that turn a little from step to step.
class RandomSource final : public DecodeSource {
 public:
  static absl::StatusOr<std::unique_ptr<DecodeSource>> Make(const DecodeBenchOptions& o) {
    std::unique_ptr<RandomSource> source(new RandomSource(o));
    if (!o.trace.empty()) {
      auto trace = SelectionTrace::Read(o.trace);
      if (!trace.ok()) return trace.status();
      source->trace_ = std::make_unique<SelectionTrace>(*std::move(trace));
      const auto& facts = source->trace_->facts();
      if (facts.budget != o.budget || facts.position + facts.steps > o.context) {
        return absl::InvalidArgumentError(
            absl::StrCat("--trace: ", o.trace, " has budget ", facts.budget, " and ",
                         facts.position + facts.steps, " tokens, asked are --budget ", o.budget,
                         " and --context ", o.context));
      }
    }
    source->steps_ = std::max(o.warmup + o.steps, kProbeSteps);
    auto model = RandomModel::Make({.shape = o.shape,
                                    .layers = o.layers,
                                    .context = o.context,
                                    .layer_similarity = o.layer_similarity,
                                    .states = source->steps_ * o.batch,
                                    .encoding = EncodingOf(o.weights),
                                    .labels = o.labels});
    if (!model.ok()) return model.status();
    source->model_ = *std::move(model);
    const ModelFiles& files = source->model_->files();
    // The runner that is copied from, and the one that is measured.
    absl::Status status = CheckLocalMemory(files, size_t{2} * o.batch * o.context);
    if (!status.ok()) return status;
    return source;
  }

  const ModelFiles& files() const override { return model_->files(); }
  size_t weight_bytes() const override { return model_->weight_bytes(); }
  size_t weight_values() const override { return model_->weight_values(); }

  absl::Status Prepare(LocalRunner& runner) override {
    const uint32_t start = trace_ ? trace_->facts().position : o_.context - steps_;
    FillBf16(runner.segment().rows(), runner.segment().layout().pool_bytes() / 2, 1.0, 99);
    for (uint32_t s = 0; s < o_.batch; ++s) {
      runner.Seek(s, start);
      MakeLabels(runner, s);
    }
    if (!trace_ && !o_.dense) FindStepCosine(runner);
    return absl::OkStatus();
  }

  void Step(LocalRunner& runner, uint32_t step, RowBudget budget) override {
    std::vector<uint32_t> ids;
    for (uint32_t s = 0; s < o_.batch; ++s) ids.push_back(s * steps_ + step);
    std::vector<LocalRunner::Step> steps;
    for (uint32_t s = 0; s < o_.batch; ++s) steps.push_back({s, {&ids[s], 1}, budget});
    if (trace_) Replay(runner, step);
    runner.ForwardBatch(steps, /*draw=*/true);
  }

 private:
  explicit RandomSource(const DecodeBenchOptions& o) : o_(o) {}

  // As AppendLabels makes them of the rows.
  void MakeLabels(LocalRunner& runner, uint32_t sequence) {
    const ChannelConfig& channels = *files().channels;
    const uint32_t r = channels.channels;
    std::vector<float> label(r);
    for (uint32_t layer = 0; layer < files().config.layers; ++layer) {
      const RowTable rows = runner.HostRows(layer, sequence);
      const LabelTable labels = runner.Labels(layer, sequence);
      for (uint32_t t = 0; t < runner.position(sequence); ++t) {
        for (uint32_t head = 0; head < channels.kv_heads; ++head) {
          const std::byte* row = rows.Row(head, t);
          const uint16_t* chosen = channels.Layer(layer) + head * r;
          for (uint32_t c = 0; c < r; ++c) label[c] = LoadValue(row, chosen[c], DType::kBF16);
          StoreLabel(*labels.layout, labels.Head(head, t / kBlockTokens), t % kBlockTokens, label);
        }
      }
    }
  }

  // Share of one step's selections that the step before had.
  double Overlap(LocalRunner& base) {
    auto probe = LocalRunner::Make(
        files(), {.max_tokens = o_.context, .threads = o_.threads, .selection = o_.budget});
    CHECK(probe.ok());
    (*probe)->CopyFrom(base);
    std::map<uint64_t, std::vector<uint32_t>> last;
    double both = 0, all = 0;
    (*probe)->device().attention->set_selection_hook(
        [&](uint32_t layer, uint32_t, uint32_t head, bool, std::span<uint32_t> list) {
          std::vector<uint32_t>& before = last[uint64_t{layer} << 32 | head];
          if (!before.empty()) {
            std::vector<uint32_t> common;
            std::ranges::set_intersection(list, before, std::back_inserter(common));
            both += static_cast<double>(common.size());
            all += static_cast<double>(list.size());
          }
          before.assign(list.begin(), list.end());
        });
    for (uint32_t step = 0; step < kProbeSteps; ++step) {
      (*probe)->Forward({&step, 1}, {.rows = o_.budget});
    }
    return both / all;
  }

  // The cosine of the walk's steps that gives the overlap asked for, by bisection.
  void FindStepCosine(LocalRunner& base) {
    double low = 0, high = 1, overlap = 0;
    for (int i = 0; i < 10 && std::fabs(overlap - o_.step_overlap) > 0.005; ++i) {
      const double cosine = (low + high) / 2;
      model_->SetSteps(cosine);
      overlap = Overlap(base);
      (overlap < o_.step_overlap ? low : high) = cosine;
    }
    spdlog::info("consecutive steps share {:.3f} of their selections", overlap);
  }

  void Replay(LocalRunner& runner, uint32_t step) {
    runner.device().attention->set_selection_hook([this, step](uint32_t layer, uint32_t,
                                                               uint32_t head, bool predicted,
                                                               std::span<uint32_t> list) {
      const auto& traced = trace_->For(step % trace_->facts().steps, layer, head, predicted);
      if (traced.size() == list.size()) std::ranges::copy(traced, list.begin());
    });
  }

  const DecodeBenchOptions& o_;
  std::unique_ptr<RandomModel> model_;
  std::unique_ptr<SelectionTrace> trace_;
  uint32_t steps_ = 0;
};

// A checkpoint that goes on, greedily, from the first tokens of a text.
class RealSource final : public DecodeSource {
 public:
  static absl::StatusOr<std::unique_ptr<DecodeSource>> Make(const DecodeBenchOptions& o) {
    std::unique_ptr<RealSource> source(new RealSource(o));
    auto files = ModelFiles::Load(o.model, "");
    if (!files.ok()) return files.status();
    if (!files->channels) {
      return absl::FailedPreconditionError(absl::StrCat(o.model, ": has no channels.json"));
    }
    source->files_ = *std::move(files);
    auto tokenizer = Tokenizer::Load(o.model);
    if (!tokenizer.ok()) return tokenizer.status();
    auto text = ReadInput(o.text);
    if (!text.ok()) return text.status();
    auto ids = (*tokenizer)->Encode(*text);
    if (!ids.ok()) return ids.status();
    const uint32_t steps = o.warmup + o.steps, context = source->files_.config.max_context;
    if (o.context > context) {
      return absl::InvalidArgumentError(
          absl::StrCat("--context: ", o.context, " is more than the model's ", context));
    }
    if (ids->size() < o.context - steps) {
      return absl::InvalidArgumentError(absl::StrCat("--text: ", o.text, " has ", ids->size(),
                                                     " tokens, needed are ", o.context - steps));
    }
    ids->resize(o.context - steps);
    source->prompt_ = *std::move(ids);
    return source;
  }

  const ModelFiles& files() const override { return files_; }
  size_t weight_bytes() const override {
    size_t bytes = 0;
    ForEachMatrix([&](const WeightView& w) { bytes += WeightBytes(w); });
    return bytes;
  }
  size_t weight_values() const override {
    size_t values = 0;
    ForEachMatrix([&](const WeightView& w) { values += size_t{w.rows} * w.cols; });
    return values;
  }

  absl::Status Prepare(LocalRunner& runner) override {
    for (uint32_t s = 0; s < o_.batch; ++s) {
      first_ = Highest(runner.Prefill(s, prompt_));
    }
    return absl::OkStatus();
  }

  void Step(LocalRunner& runner, uint32_t step, RowBudget budget) override {
    if (step == 0) {
      next_.assign(o_.batch, first_);
      if (!o_.record.empty()) BeginRecord();
    }
    std::vector<LocalRunner::Step> steps;
    for (uint32_t s = 0; s < o_.batch; ++s) steps.push_back({s, {&next_[s], 1}, budget});
    if (trace_) Record(runner, step);
    runner.ForwardBatch(steps, /*draw=*/true);
    const std::vector<uint32_t> ids = next_;
    for (uint32_t s = 0; s < o_.batch; ++s) next_[s] = runner.drawn()[s].id;
    if (trace_ && step + 1 == o_.warmup + o_.steps) {
      const absl::Status status = trace_->Write(o_.record);
      if (!status.ok()) spdlog::error("{}", std::string(status.message()));
    }
  }

 private:
  template <typename Visit>
  void ForEachMatrix(const Visit& visit) const {
    for (const LayerWeights& l : files_.weights->layers) {
      for (const WeightView* w : {&l.wq, &l.wk, &l.wv, &l.wo, &l.gate, &l.up, &l.down}) visit(*w);
    }
    visit(files_.weights->lm_head);
  }

  explicit RealSource(const DecodeBenchOptions& o) : o_(o) {}

  uint32_t Highest(const float* logits) const {
    return static_cast<uint32_t>(std::max_element(logits, logits + files_.config.vocab_size) -
                                 logits);
  }

  void BeginRecord() {
    trace_ = std::make_unique<SelectionTrace>(
        SelectionTrace::Facts{.layers = files_.config.layers,
                              .kv_heads = files_.config.kv_heads,
                              .position = static_cast<uint32_t>(prompt_.size()),
                              .budget = o_.budget,
                              .steps = o_.warmup + o_.steps});
  }

  void Record(LocalRunner& runner, uint32_t step) {
    runner.device().attention->set_selection_hook([this, step](uint32_t layer, uint32_t item,
                                                               uint32_t head, bool predicted,
                                                               std::span<uint32_t> list) {
      if (item == 0) trace_->At(step, layer, head, predicted).assign(list.begin(), list.end());
    });
  }

  const DecodeBenchOptions& o_;
  ModelFiles files_;
  std::vector<uint32_t> prompt_, next_;
  uint32_t first_ = 0;
  std::unique_ptr<SelectionTrace> trace_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DecodeSource>> DecodeSource::Make(
    const DecodeBenchOptions& options) {
  return options.model.empty() ? RandomSource::Make(options) : RealSource::Make(options);
}

}  // namespace sparsekv
