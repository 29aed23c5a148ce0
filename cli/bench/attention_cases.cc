#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "cli/bench/kernel_bench.h"

// Attention of one layer for one token: dense, and over a selection with everything that leads to
// it. Consecutive runs take other layers of the rows and labels and other queries, as a model's
// decode step does, so that caches do not hold what they would not hold there.
namespace sparsekv {
namespace {

constexpr uint32_t kKvHeads = 8;
constexpr uint32_t kBudget = 2048;
constexpr uint32_t kQueries = 16;
constexpr uint32_t kSelections = 8;  // together far more rows than a cache holds
constexpr uint32_t kChunk = 256;     // tokens of the prefill case

struct Shape {
  uint32_t context;
  uint32_t group;
  uint32_t head_dim;

  nlohmann::ordered_json Params() const {
    return {{"context", context},
            {"kv_heads", kKvHeads},
            {"group", group},
            {"head_dim", head_dim},
            {"dtype", "bf16"}};
  }
};

// One sequence's rows and labels in every layer that the memory holds, and the steps over them.
class Layers {
 public:
  Layers(KernelBench& bench, const Shape& shape, const BenchLabels& labels)
      : bench_(bench),
        shape_(shape),
        channels_(labels.Channels(shape.head_dim)),
        rows_{.layers = 1,
              .kv_heads = kKvHeads,
              .head_dim = shape.head_dim,
              .dtype = DType::kBF16,
              .blocks = shape.context / kBlockTokens},
        labels_{.layers = 1, .kv_heads = kKvHeads, .channels = channels_, .format = labels.format},
        blocks_(rows_.blocks),
        scores_(size_t{kKvHeads} * shape.context),
        selection_(kKvHeads * kBudget),
        random_selections_(kSelections * kKvHeads * kBudget),
        q_(NormalValues(kQueries * width(), 3)),
        out_(width()) {
    rows_.layers = static_cast<uint32_t>(KernelBench::kMemory / rows_.layer_stride());
    labels_.layers =
        static_cast<uint32_t>(KernelBench::kMemory / (labels_.layer_stride() * rows_.blocks));
    std::iota(blocks_.begin(), blocks_.end(), 0u);
    std::shuffle(blocks_.begin(), blocks_.end(), std::mt19937(4));
    for (uint32_t block : blocks_) pages_.push_back(bench.labels() + block * labels_.page_bytes());
    for (uint32_t h = 0; h < kKvHeads; ++h) {
      for (uint32_t c = 0; c < channels_; ++c) {
        channel_list_.push_back(
            static_cast<uint16_t>((c * shape.head_dim / channels_ + h) % shape.head_dim));
      }
    }
    std::mt19937 engine(5);
    for (size_t at = 0; at < random_selections_.size(); at += kBudget) {
      const auto begin = random_selections_.begin() + static_cast<ptrdiff_t>(at);
      std::generate_n(begin, kBudget, [&] { return engine() % shape.context; });
      std::sort(begin, begin + kBudget);
    }
    Score(0, Pooling::kMaxNormalised);  // for Select alone
  }

  double row_bytes(uint32_t tokens) const { return double(tokens) * kKvHeads * rows_.row_bytes(); }
  double label_bytes() const { return double(shape_.context) * labels_.layer_stride() / 64; }
  size_t row_size() const { return rows_.row_bytes(); }
  double Flops(uint32_t tokens) const { return 4.0 * tokens * double(width()); }
  double ScoreFlops() const { return 2.0 * shape_.context * kKvHeads * shape_.group * channels_; }

  void Score(uint32_t i, Pooling pooling) {
    const ScoreLabelsArgs::Item item = Scored(i);
    bench_.backend().ScoreLabels(Scoring(i, pooling, item));
  }

  void Select() {
    const SelectArgs::Item item = Selected();
    bench_.backend().Select(Selecting(item));
  }

  void ScoreSelect(uint32_t i) {
    const ScoreLabelsArgs::Item scored = Scored(i);
    const SelectArgs::Item selected = Selected();
    bench_.backend().ScoreSelect(Scoring(i, Pooling::kMaxNormalised, scored), Selecting(selected));
  }

  // Over all rows, over those that Select chose, and over as many random ones.
  void AttendDense(uint32_t i) { Attend(i, 1, nullptr); }
  void AttendSelected(uint32_t i) { Attend(i, 1, selection_.data()); }
  void AttendRandom(uint32_t i) {
    Attend(i, 1, random_selections_.data() + i % kSelections * kKvHeads * kBudget);
  }

  // The last kChunk tokens of the context.
  void Prefill(uint32_t i) {
    chunk_q_.resize(kChunk * width(), 1.0f);
    out_.resize(chunk_q_.size());
    Attend(i, kChunk, nullptr);
  }

 private:
  ScoreLabelsArgs::Item Scored(uint32_t i) {
    return {.query = 0,
            .tokens = shape_.context,
            .labels = {.pages = pages_.data(), .layout = &labels_, .layer = i % labels_.layers},
            .scores = scores_.data()};
  }
  ScoreLabelsArgs Scoring(uint32_t i, Pooling pooling, const ScoreLabelsArgs::Item& item) const {
    return {.q = Query(i),
            .kv_heads = kKvHeads,
            .group = shape_.group,
            .head_dim = shape_.head_dim,
            .channels = channel_list_.data(),
            .pooling = pooling,
            .score_stride = shape_.context,
            .items = {&item, 1}};
  }
  SelectArgs::Item Selected() {
    return {.scores = scores_.data(),
            .tokens = shape_.context,
            .count = kBudget,
            .selection = selection_.data()};
  }
  SelectArgs Selecting(const SelectArgs::Item& item) const {
    return {.kv_heads = kKvHeads,
            .score_stride = shape_.context,
            .selection_stride = kBudget,
            .items = {&item, 1}};
  }

  size_t width() const { return size_t{kKvHeads} * shape_.group * shape_.head_dim; }

  void Attend(uint32_t i, uint32_t tokens, const uint32_t* selection) {
    const AttendArgs::Item item = {
        .span = {.tokens = tokens, .position = shape_.context - tokens},
        .rows = {.layer_base = bench_.memory() + (i % rows_.layers) * rows_.layer_stride(),
                 .blocks = blocks_.data(),
                 .layout = &rows_},
        .selection = selection,
        .count = selection == nullptr ? 0 : kBudget};
    bench_.backend().Attend({.q = tokens == 1 ? Query(i) : chunk_q_.data(),
                             .out = out_.data(),
                             .kv_heads = kKvHeads,
                             .group = shape_.group,
                             .head_dim = shape_.head_dim,
                             .scale = 1 / std::sqrt(static_cast<float>(shape_.head_dim)),
                             .selection_stride = kBudget,
                             .items = {&item, 1}});
  }

  const float* Query(uint32_t i) const { return q_.data() + i % kQueries * width(); }

  KernelBench& bench_;
  Shape shape_;
  uint32_t channels_;
  RowLayout rows_;
  LabelLayout labels_;
  std::vector<uint32_t> blocks_;
  std::vector<std::byte*> pages_;
  std::vector<uint16_t> channel_list_;
  std::vector<float> scores_;
  std::vector<uint32_t> selection_;
  std::vector<uint32_t> random_selections_;
  std::vector<float> q_;
  std::vector<float> chunk_q_;
  std::vector<float> out_;
};

using Ceilings = KernelBench::Ceilings;

nlohmann::ordered_json With(nlohmann::ordered_json params, const char* key,
                            const nlohmann::ordered_json& value) {
  params[key] = value;
  return params;
}

// Dense attention, sparse attention with scoring and selection, and the parts of the latter.
void AddShape(KernelBench& bench, const Shape& shape, const BenchLabels& format,
              std::vector<KernelCase>* cases) {
  const auto layers = std::make_shared<Layers>(bench, shape, format);
  const auto params = shape.Params();
  const auto budget_params = With(params, "budget", kBudget);
  auto score_params = params, sparse_params = budget_params;
  format.Describe(shape.head_dim, &score_params);
  format.Describe(shape.head_dim, &sparse_params);
  const double rows = layers->row_bytes(shape.context);
  const double selected = layers->row_bytes(kBudget);
  const double labels = layers->label_bytes();
  const size_t row_size = layers->row_size();
  const auto pooling = Pooling::kMaxNormalised;
  cases->push_back({.item = {"attend_dense", params, rows, layers->Flops(shape.context)},
                    .run = [layers](uint32_t i) { layers->AttendDense(i); },
                    .ideal = [=](const Ceilings& ceilings) { return rows / ceilings.stream; }});
  cases->push_back({.item = {"attend_sparse", sparse_params, labels + selected,
                             layers->ScoreFlops() + layers->Flops(kBudget)},
                    .run =
                        [layers](uint32_t i) {
                          layers->ScoreSelect(i);
                          layers->AttendSelected(i);
                        },
                    .ideal =
                        [=](const Ceilings& ceilings) {
                          return labels / ceilings.stream + selected / ceilings.RowRate(row_size);
                        }});
  cases->push_back(
      {.item = {"score_labels", With(score_params, "pooling", "max"), labels, layers->ScoreFlops()},
       .run = [layers](uint32_t i) { layers->Score(i, pooling); },
       .ideal = [=](const Ceilings& ceilings) { return labels / ceilings.stream; }});
  cases->push_back({.item = {"score_labels", With(score_params, "pooling", "softmax"), labels,
                             layers->ScoreFlops()},
                    .run = [layers](uint32_t i) { layers->Score(i, Pooling::kSoftmaxMass); },
                    .ideal = [=](const Ceilings& ceilings) { return labels / ceilings.stream; }});
  cases->push_back({.item = {"score_select", sparse_params, labels, layers->ScoreFlops()},
                    .run = [layers](uint32_t i) { layers->ScoreSelect(i); },
                    .ideal = [=](const Ceilings& ceilings) { return labels / ceilings.stream; }});
  cases->push_back({.item = {"select", budget_params, 4.0 * shape.context * kKvHeads},
                    .run = [layers](uint32_t) { layers->Select(); }});
  cases->push_back(
      {.item = {"attend_selection", budget_params, selected, layers->Flops(kBudget)},
       .run = [layers](uint32_t i) { layers->AttendRandom(i); },
       .ideal = [=](const Ceilings& ceilings) { return selected / ceilings.RowRate(row_size); }});
}

void AddPrefill(KernelBench& bench, const Shape& shape, std::vector<KernelCase>* cases) {
  const auto layers = std::make_shared<Layers>(bench, shape, BenchLabels{});
  const double flops = kChunk * layers->Flops(shape.context - kChunk / 2);
  cases->push_back({.item = {"attend_prefill", With(shape.Params(), "tokens", kChunk),
                             layers->row_bytes(shape.context), flops},
                    .run = [layers](uint32_t i) { layers->Prefill(i); },
                    .ideal = [=](const Ceilings& ceilings) { return flops / ceilings.flops; }});
}

}  // namespace

void AddAttentionCases(KernelBench& bench, const std::string& filter, const BenchLabels& labels,
                       std::vector<KernelCase>* cases) {
  std::vector<KernelCase> all;
  for (const Shape& shape : {Shape{131072, 4, 128}, Shape{32768, 4, 128}, Shape{32768, 1, 128},
                             Shape{32768, 8, 128}, Shape{65536, 4, 64}}) {
    AddShape(bench, shape, labels, &all);
  }
  AddPrefill(bench, {2048, 4, 128}, &all);
  for (KernelCase& item : all) {
    if (item.item.name.find(filter) != std::string::npos) cases->push_back(std::move(item));
  }
}

}  // namespace sparsekv
