#include "cli/bench/device_layers.h"

#include <algorithm>
#include <cmath>
#include <random>

namespace sparsekv {
namespace {

constexpr uint32_t kMostLayers = 32;     // of a model: more would be reached through other pages
constexpr uint32_t kMostLabelSets = 64;  // with 32 layers: other labels for every run of a step
constexpr uint32_t kQueries = 16;        // sets of them
constexpr uint32_t kLists = 32;          // random lists that a KV head can have

// How many of `bytes` are no longer in a cache when the first is read again.
uint32_t ColdCopies(size_t cold_bytes, size_t bytes, uint32_t most) {
  return static_cast<uint32_t>(std::clamp<size_t>((cold_bytes + bytes - 1) / bytes, 1, most));
}

// `count` of the numbers 0 .. range-1, ascending, all equally likely.
void AppendAscending(uint32_t count, uint32_t range, std::mt19937& engine,
                     std::vector<uint32_t>* list) {
  for (uint32_t value = 0; count > 0; ++value) {
    // Taken with the probability (count that are wanted) / (numbers that are left).
    if (uint64_t{engine()} * (range - value) >> 32 >= count) continue;
    list->push_back(value);
    --count;
  }
}

}  // namespace

std::unique_ptr<DeviceLayers> DeviceLayers::Make(DeviceBench& bench, const DeviceGrid::Model& model,
                                                 const Size& size) {
  std::unique_ptr<DeviceLayers> layers(new DeviceLayers(bench, model, size));
  if (size.channels > 0) layers->PlaceLabels();
  if (!layers->PlaceRows()) return nullptr;
  layers->MakeTables();
  return layers;
}

DeviceLayers::DeviceLayers(DeviceBench& bench, const DeviceGrid::Model& model, const Size& size)
    : bench_(bench),
      backend_(bench.backend()),
      model_(model),
      size_(size),
      labels_{.kv_heads = model.kv_heads, .channels = size.channels, .format = size.format},
      rows_{.kv_heads = model.kv_heads, .head_dim = model.head_dim, .dtype = DType::kBF16} {
  CHECK_EQ(size.context % kBlockTokens, 0u);
}

void DeviceLayers::PlaceLabels() {
  const size_t pages = size_.batch * blocks();
  label_layer_bytes_ = pages * labels_.layer_stride();
  labels_.layers = ColdCopies(bench_.cold_bytes(), label_layer_bytes_, kMostLayers);
  const size_t set_bytes = pages * labels_.page_bytes();
  label_sets_ = ColdCopies(bench_.cold_bytes(), set_bytes, kMostLabelSets);
  rows_at_ = (label_sets_ * set_bytes + RowLayout::kPage - 1) / RowLayout::kPage * RowLayout::kPage;
}

bool DeviceLayers::PlaceRows() {
  rows_.blocks = static_cast<uint32_t>(size_.batch * blocks());
  const size_t pool = bench_.pool().size();
  if (rows_at_ + rows_.layer_stride() > pool) return false;
  rows_.layers = static_cast<uint32_t>(
      std::min<size_t>(kMostLayers, (pool - rows_at_) / rows_.layer_stride()));
  return true;
}

void DeviceLayers::MakeTables() {
  const auto table = Shuffled(rows_.blocks, 4);
  block_table_ = std::make_unique<DeviceArray<uint32_t>>(backend_, table);
  std::vector<std::byte*> pages;
  for (uint32_t set = 0; set < label_sets_ && size_.channels > 0; ++set) {
    for (uint32_t page : table) {
      pages.push_back(bench_.pool().data() +
                      (size_t{set} * table.size() + page) * labels_.page_bytes());
    }
  }
  page_table_ = std::make_unique<DeviceArray<std::byte*>>(backend_, pages);
  std::vector<uint16_t> channels;
  for (uint32_t head = 0; head < model_.kv_heads; ++head) {
    const auto order = Shuffled(model_.head_dim, 100 + head);
    for (uint32_t c = 0; c < size_.channels; ++c) {
      channels.push_back(static_cast<uint16_t>(order[c]));
    }
  }
  channel_table_ = std::make_unique<DeviceArray<uint16_t>>(backend_, channels);

  const size_t tokens = size_t{size_.batch} * size_.queries;
  q_ = NormalsOn(backend_, QuerySets() * tokens * model_.width());
  k_ = NormalsOn(backend_, tokens * model_.kv_width());
  v_ = NormalsOn(backend_, tokens * model_.kv_width());
  out_ = std::make_unique<DeviceArray<float>>(backend_, tokens * model_.width());
  if (size_.channels > 0) {
    scores_ = std::make_unique<DeviceArray<float>>(
        backend_, size_t{size_.batch} * model_.kv_heads * size_.context);
  }
  positions_.assign(size_.batch, size_.context - 1);
  for (uint32_t c = 0; c < model_.head_dim; c += 2) {
    const float share = static_cast<float>(c) / static_cast<float>(model_.head_dim);
    inverse_frequency_.push_back(std::pow(500000.0f, -share));
  }
}

void DeviceLayers::SetBudget(uint32_t budget) {
  budget_ = budget;
  // Sequences share lists, but no row: their blocks are others.
  std::vector<uint32_t> lists;
  std::mt19937 engine(5);
  for (uint32_t list = 0; list < kLists + model_.kv_heads; ++list) {
    AppendAscending(budget, size_.context, engine, &lists);
  }
  random_ = nullptr;  // freed before the next is made
  random_ = std::make_unique<DeviceArray<uint32_t>>(backend_, lists);
  selection_ = nullptr;
  selection_ = std::make_unique<DeviceArray<uint32_t>>(
      backend_, size_t{size_.batch} * model_.kv_heads * budget);
}

// A prompt's queries are no cache's concern.
uint32_t DeviceLayers::QuerySets() const { return size_.queries == 1 ? kQueries : 1; }

float* DeviceLayers::Query(uint32_t i) const {
  const size_t values = size_t{size_.batch} * size_.queries * model_.width();
  return q_->data() + i % QuerySets() * values;
}

RowTable DeviceLayers::Rows(uint32_t i, uint32_t sequence) const {
  return {.layer_base = bench_.pool().data() + rows_at_ + i % rows_.layers * rows_.layer_stride(),
          .blocks = block_table_->data() + sequence * blocks(),
          .layout = &rows_};
}

LabelTable DeviceLayers::Labels(uint32_t i, uint32_t sequence) const {
  const size_t set = i / labels_.layers % label_sets_;
  return {.pages = page_table_->data() + (set * size_.batch + sequence) * blocks(),
          .layout = &labels_,
          .layer = i % labels_.layers};
}

std::vector<ScoreLabelsArgs::Item> DeviceLayers::ScoreItems(uint32_t i) {
  std::vector<ScoreLabelsArgs::Item> items;
  for (uint32_t s = 0; s < size_.batch; ++s) {
    items.push_back({.query = s,
                     .tokens = size_.context,
                     .labels = Labels(i, s),
                     .scores = scores_->data() + size_t{s} * model_.kv_heads * size_.context});
  }
  return items;
}

std::vector<SelectArgs::Item> DeviceLayers::SelectItems() {
  std::vector<SelectArgs::Item> items;
  for (uint32_t s = 0; s < size_.batch; ++s) {
    const size_t heads = size_t{s} * model_.kv_heads;
    items.push_back({.scores = scores_->data() + heads * size_.context,
                     .tokens = size_.context,
                     .count = budget_,
                     .selection = selection_->data() + heads * budget_});
  }
  return items;
}

ScoreLabelsArgs DeviceLayers::Scoring(uint32_t i, std::span<const ScoreLabelsArgs::Item> items) {
  return {.q = Query(i),
          .kv_heads = model_.kv_heads,
          .group = model_.heads / model_.kv_heads,
          .head_dim = model_.head_dim,
          .channels = channel_table_->data(),
          .pooling = Pooling::kMaxNormalised,
          .score_stride = size_.context,
          .items = items};
}

SelectArgs DeviceLayers::Selecting(std::span<const SelectArgs::Item> items) const {
  return {.kv_heads = model_.kv_heads,
          .score_stride = size_.context,
          .selection_stride = budget_,
          .items = items};
}

void DeviceLayers::Score(uint32_t i) {
  const auto items = ScoreItems(i);
  backend_.ScoreLabels(Scoring(i, items));
}

void DeviceLayers::Select() {
  const auto items = SelectItems();
  backend_.Select(Selecting(items));
}

void DeviceLayers::ScoreSelect(uint32_t i) {
  const auto scored = ScoreItems(i);
  const auto selected = SelectItems();
  backend_.ScoreSelect(Scoring(i, scored), Selecting(selected));
}

void DeviceLayers::AttendDense(uint32_t i) {
  Attend(i, std::vector<const uint32_t*>(size_.batch, nullptr));
}

void DeviceLayers::AttendSelected(uint32_t i) {
  std::vector<const uint32_t*> selections;
  for (uint32_t s = 0; s < size_.batch; ++s) {
    selections.push_back(selection_->data() + size_t{s} * model_.kv_heads * budget_);
  }
  Attend(i, selections);
}

// A layer that comes again is asked for other rows.
void DeviceLayers::AttendRandom(uint32_t i) {
  const uint32_t first = i + 7 * (i / rows_.layers);
  std::vector<const uint32_t*> selections;
  for (uint32_t s = 0; s < size_.batch; ++s) {
    selections.push_back(random_->data() + size_t{(first + 5 * s) % kLists} * budget_);
  }
  Attend(i, selections);
}

void DeviceLayers::Attend(uint32_t i, const std::vector<const uint32_t*>& selections) {
  std::vector<AttendArgs::Item> items;
  for (uint32_t s = 0; s < size_.batch; ++s) {
    items.push_back({.span = {.first = s * size_.queries,
                              .tokens = size_.queries,
                              .position = size_.context - size_.queries},
                     .rows = Rows(i, s),
                     .selection = selections[s],
                     .count = selections[s] ? budget_ : 0});
  }
  backend_.Attend({.q = Query(i),
                   .out = out_->data(),
                   .kv_heads = model_.kv_heads,
                   .group = model_.heads / model_.kv_heads,
                   .head_dim = model_.head_dim,
                   .scale = 1 / std::sqrt(static_cast<float>(model_.head_dim)),
                   .selection_stride = budget_,
                   .items = items});
}

void DeviceLayers::RotateAppend(uint32_t i) {
  std::vector<AppendRowsArgs::Item> rows;
  std::vector<AppendLabelsArgs::Item> labels;
  for (uint32_t s = 0; s < size_.batch; ++s) {
    const StepSpan span = {.first = s, .tokens = 1, .position = size_.context - 1};
    rows.push_back({.span = span, .rows = Rows(i, s)});
    labels.push_back({.span = span, .labels = Labels(i, s)});
  }
  backend_.RotateAppend({.q = Query(i),
                         .k = k_->data(),
                         .v = v_->data(),
                         .positions = positions_,
                         .inverse_frequency = inverse_frequency_,
                         .heads = model_.heads,
                         .kv_heads = model_.kv_heads,
                         .head_dim = model_.head_dim,
                         .row_dtype = DType::kBF16,
                         .channels = channel_table_->data(),
                         .rows = rows,
                         .labels = labels});
}

}  // namespace sparsekv
