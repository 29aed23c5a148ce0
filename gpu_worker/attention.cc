#include "gpu_worker/attention.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace sparsekv {

Attention::Attention(const Options& options)
    : options_(options),
      config_(*options.config),
      backend_(*options.backend),
      scratch_(options.scratch),
      step_lists_{scratch_.q, scratch_.scores, scratch_.selection, scratch_.slots, scratch_.misses},
      ahead_lists_{scratch_.ahead.q, scratch_.ahead.scores, scratch_.ahead.selection,
                   scratch_.ahead.slots, nullptr},
      inverse_frequency_(config_.InverseFrequency()),
      long_inverse_frequency_(config_.InverseFrequency(true)),
      counts_(options.config->layers) {
  if (options.channels) label_layout_ = options.channels->label_layout();
}

void Attention::BeginPass(std::span<const StepItem> items, std::span<const uint32_t> first) {
  items_ = items;
  first_ = first;
  for (Kept& kept : kept_) kept.layer = kNoToken;
  judged_.clear();
  guessed_.clear();
  if (options_.fetcher) options_.fetcher->BeginStep(items.size());
}

void Attention::FetchNotes() {
  common_seen_.resize(judged_.size() * config_.kv_heads);
  if (!judged_.empty()) {
    backend_.Fetch(common_seen_.data(), scratch_.common, common_seen_.size() * sizeof(uint32_t));
  }
  if (options_.fetcher) options_.fetcher->FetchNotes();
}

void Attention::EndStep() {
  for (const Judged& judged : judged_) {
    counts_[judged.layer].predicted += judged.predicted;
    for (uint32_t head = 0; head < config_.kv_heads; ++head) {
      counts_[judged.layer].predicted_selected += common_seen_[judged.common + head];
    }
  }
  judged_.clear();
  if (options_.fetcher) options_.fetcher->EndStep(&counts_);
}

void Attention::Run(uint32_t layer) {
  if (on_attend_) return AttendByHook(layer);
  LayerCounts& counts = counts_[layer];
  if (options_.fetcher) {
    Timeline::Span span(options_.timeline, "settle", layer);
    const double waited = options_.fetcher->Settle(layer, policy(layer).uncorrected, &counts);
    counts.rows.stall_s += waited;
    for (uint32_t i = 0; i < items_.size() && waited > 0; ++i) {
      if (!options_.fetcher->predicted(layer, i) || !items_[i].counts) continue;
      items_[i].counts->stall_s += waited;
    }
  }
  AttendDense(layer);
  std::vector<Selecting> selecting, judged;
  for (uint32_t i = 0; i < items_.size(); ++i) {
    const StepItem& item = items_[i];
    if (dense(layer, item)) continue;
    CHECK_EQ(item.ids.size(), size_t{1});
    const uint32_t tokens = item.position + 1, first = item.First(config_.window(layer));
    const Selecting one = {i, tokens, first, item.budget.At(tokens, first)};
    (uncorrected(layer, i) ? judged : selecting).push_back(one);
  }
  ForEachRound(layer, false, selecting, [&](std::span<const Selecting> round, size_t stride) {
    AttendSelected(layer, round, stride);
  });
  if (measure_) {
    ForEachRound(layer, false, judged, [&](std::span<const Selecting> round, size_t stride) {
      JudgePrediction(layer, round, stride);
    });
  }
  for (const Selecting& one : judged) AttendPredicted(layer, one.index);
  if (options_.fetcher) options_.fetcher->EndLayer(layer);
}

std::vector<Attention::RopeRun> Attention::RopeRuns() const {
  std::vector<RopeRun> runs;
  for (uint32_t i = 0; i < items_.size(); ++i) {
    if (i == 0 || items_[i].long_rope != items_[i - 1].long_rope) {
      const auto& frequency = items_[i].long_rope ? long_inverse_frequency_ : inverse_frequency_;
      runs.push_back({.first_item = i, .first_token = first_[i], .inverse_frequency = frequency});
    }
    ++runs.back().items;
    runs.back().tokens += static_cast<uint32_t>(items_[i].ids.size());
  }
  return runs;
}

void Attention::Append(uint32_t layer, std::span<const uint32_t> positions) {
  if (options_.fetcher) options_.fetcher->BeginLists(layer);
  for (const RopeRun& run : RopeRuns()) AppendRun(layer, run, positions);
}

void Attention::AttendByHook(uint32_t layer) {
  const size_t width = size_t{config_.heads} * config_.head_dim;
  for (size_t i = 0; i < items_.size(); ++i) {
    CHECK(backend_.host_memory() && !items_[i].device && items_[i].ids.size() == 1);
    on_attend_(layer, items_[i], HostRows(layer, items_[i]), scratch_.q + first_[i] * width,
               scratch_.attended + first_[i] * width);
  }
}

// Rows go to the segment, to its mirror, and where the item's rows are on the device by position,
// there too.
void Attention::AppendRun(uint32_t layer, const RopeRun& run, std::span<const uint32_t> positions) {
  std::vector<AppendRowsArgs::Item> rows;
  std::vector<AppendLabelsArgs::Item> labels;
  for (uint32_t i = run.first_item; i < run.first_item + run.items; ++i) {
    const StepItem& item = items_[i];
    StepSpan span = Span(i);
    span.first -= run.first_token;
    rows.push_back({span, HostRows(layer, item)});
    if (options_.mirror_pool && item.offloaded()) {
      rows.push_back({span, RowsIn(options_.mirror_pool, layer, item)});
    }
    if (item.prefill_block != kNoPrefill) {
      rows.push_back({span, PrefillRows(item.prefill_block)});
    } else if (item.resident() || (item.offloaded() && item.budget.dense())) {
      rows.push_back({span, item.device->Rows(layer)});
    }
    if (item.label_pages) labels.push_back({span, Labels(layer, item)});
  }
  const size_t q_width = size_t{config_.heads} * config_.head_dim;
  const size_t kv_width = size_t{config_.kv_heads} * config_.head_dim;
  backend_.RotateAppend({.q = scratch_.q + run.first_token * q_width,
                         .k = scratch_.k + run.first_token * kv_width,
                         .v = scratch_.v + run.first_token * kv_width,
                         .positions = positions.subspan(run.first_token, run.tokens),
                         .inverse_frequency = run.inverse_frequency,
                         .heads = config_.heads,
                         .kv_heads = config_.kv_heads,
                         .head_dim = config_.head_dim,
                         .row_dtype = options_.row_layout.dtype,
                         .channels = labels.empty() ? nullptr : Channels(layer),
                         .rows = rows,
                         .labels = labels});
}

// On the device, [kv_heads, channels].
const uint16_t* Attention::Channels(uint32_t layer) const {
  return options_.channel_table + size_t{layer} * config_.kv_heads * options_.channels->channels;
}

void Attention::AttendDense(uint32_t layer) {
  std::vector<AttendArgs::Item> attending;
  for (size_t i = 0; i < items_.size(); ++i) {
    const StepItem& item = items_[i];
    if (!dense(layer, item)) continue;
    const uint32_t first = item.First(config_.window(layer));
    // A layer that fell back has no room on the device for all of an offloaded sequence's rows.
    const bool in_segment = item.offloaded() && !item.budget.dense();
    AttendArgs::Item attend = {.span = Span(i), .rows = HostRows(layer, item)};
    if (item.prefill_block != kNoPrefill) {
      attend.rows = PrefillRows(item.prefill_block);
    } else if (item.device && !in_segment) {
      attend.rows = item.device->Rows(layer);
    }
    attending.push_back(attend);
    if (!item.budget.dense()) {
      item.recall->set_rows(layer, item.position + 1 - first);
      if (item.recall->Samples(layer, item.position)) Sampled(layer, item, 1);
    }
    if (!item.counts) continue;
    if (item.offloaded()) {
      CHECK_EQ(item.ids.size(), size_t{1});
      options_.fetcher->Stream(layer, item, first, item.position,
                               in_segment ? nullptr : &attend.rows, &counts_[layer]);
      if (progress_) progress_();
    } else {
      CountHere(layer, item, item.position + 1 - first);
    }
  }
  if (!attending.empty()) Attend(layer, attending, 0);
}

// Room for a list of so many tokens; coarse on a device, whose steps should look alike as sequences
// grow.
size_t Attention::StrideFor(uint32_t tokens) const {
  constexpr size_t kStep = 4096;
  if (backend_.host_memory()) return tokens;
  return std::min<size_t>((tokens + kStep - 1) / kStep * kStep, config_.max_context);
}

void Attention::ForEachRound(uint32_t layer, bool predicted, std::span<Selecting> all,
                             const Use& use) {
  for (size_t from = 0; from < all.size();) {
    size_t to = from, stride = 0;
    for (; to < all.size(); ++to) {
      const size_t longest = std::max(stride, StrideFor(all[to].tokens));
      if ((to - from + 1) * longest * config_.kv_heads > scratch_.selection_entries) break;
      stride = longest;
    }
    CHECK_GT(to, from);  // one sequence alone always fits
    if (from > 0 && !predicted && options_.fetcher) options_.fetcher->BeginLists(layer);
    ScoreAndSelect(layer, predicted, all.subspan(from, to - from), stride);
    if (on_selection_) ShowLists(layer, predicted, all.subspan(from, to - from), stride);
    use(all.subspan(from, to - from), stride);
    if (progress_) progress_();
    from = to;
  }
}

void Attention::ScoreAndSelect(uint32_t layer, bool predicted, std::span<Selecting> round,
                               size_t stride) {
  CHECK(options_.channels != nullptr);
  const Lists& to = lists(predicted);
  Timeline::Span span(options_.timeline, "select", layer);
  std::vector<ScoreLabelsArgs::Item> score;
  std::vector<SelectArgs::Item> select;
  for (size_t n = 0; n < round.size(); ++n) {
    const size_t offset = n * config_.kv_heads * stride;
    score.push_back({.query = first_[round[n].index],
                     .tokens = round[n].tokens,
                     .labels = Labels(layer, items_[round[n].index]),
                     .scores = to.scores + offset,
                     .first = round[n].first});
    select.push_back({.scores = to.scores + offset,
                      .tokens = round[n].tokens,
                      .count = round[n].count,
                      .selection = to.selection + offset,
                      .first = round[n].first});
  }
  const ScoreLabelsArgs scoring = {.q = to.q,
                                   .kv_heads = config_.kv_heads,
                                   .group = config_.heads / config_.kv_heads,
                                   .head_dim = config_.head_dim,
                                   .channels = Channels(layer),
                                   .pooling = options_.channels->pooling,
                                   .score_stride = stride,
                                   .items = score};
  const SelectArgs selecting = {.kv_heads = config_.kv_heads,
                                .score_stride = stride,
                                .selection_stride = stride,
                                .items = select};
  const auto chooses = [&](const Selecting& one) { return adaptive(one.index); };
  if (predicted || std::ranges::none_of(round, chooses)) {
    return backend_.ScoreSelect(scoring, selecting);
  }
  // How many rows is known when the scores are.
  backend_.ScoreLabels(scoring);
  ChooseCounts(layer, round, stride);
  for (size_t n = 0; n < round.size(); ++n) select[n].count = round[n].count;
  backend_.Select(selecting);
}

void Attention::ShowLists(uint32_t layer, bool predicted, std::span<const Selecting> round,
                          size_t stride) {
  CHECK(backend_.host_memory());
  for (size_t n = 0; n < round.size(); ++n) {
    for (uint32_t head = 0; head < config_.kv_heads; ++head) {
      uint32_t* list = lists(predicted).selection + (n * config_.kv_heads + head) * stride;
      on_selection_(layer, round[n].index, head, predicted, {list, round[n].count});
    }
  }
}

RowFetcher::Request Attention::RequestFor(const Selecting& selecting, bool predicted, size_t n,
                                          size_t stride) const {
  const size_t offset = n * config_.kv_heads * stride;
  const Lists& of = lists(predicted);
  return {.index = selecting.index,
          .item = &items_[selecting.index],
          .rows = of.selection + offset,
          .count = selecting.count,
          .slots = of.slots + offset,
          .misses = of.misses ? of.misses + offset : nullptr,
          .resolved = scratch_.resolved + n * config_.kv_heads};
}

// The rows of the true selection, wherever they are; those of offloaded items are brought first.
void Attention::AttendSelected(uint32_t layer, std::span<const Selecting> round, size_t stride) {
  if (measure_) JudgePrediction(layer, round, stride);
  SampleRecall(layer, round, stride);
  std::vector<AttendArgs::Item> attend, offloaded;
  std::vector<size_t> places;  // of the offloaded ones
  std::vector<RowFetcher::Request> requests;
  for (size_t n = 0; n < round.size(); ++n) {
    const auto [index, count] = std::pair(round[n].index, round[n].count);
    const StepItem& item = items_[index];
    const uint32_t* list = scratch_.selection + n * config_.kv_heads * stride;
    AttendArgs::Item one = {.span = Span(index), .selection = list, .count = count};
    if (item.offloaded()) {
      requests.push_back(RequestFor(round[n], false, n, stride));
      offloaded.push_back(one);
      places.push_back(n);
    } else {
      one.rows = item.device ? item.device->Rows(layer) : HostRows(layer, item);
      if (item.counts) CountHere(layer, item, count);
    }
    attend.push_back(one);
  }
  if (!requests.empty()) {
    options_.fetcher->Bring(layer, requests, stride, offloaded, &counts_[layer]);
    AppendToSlots(offloaded, stride);
    for (size_t i = 0; i < places.size(); ++i) attend[places[i]] = offloaded[i];
  }
  Timeline::Span span(options_.timeline, "attend", layer);
  Attend(layer, attend, stride);
  if (!requests.empty()) options_.fetcher->GiveSlots();
}

// The current token's row, the last of each list that holds slots; else it is read from the
// segment.
void Attention::AppendToSlots(std::span<const AttendArgs::Item> items, size_t stride) {
  std::vector<AppendRowsArgs::Item> current;
  for (const AttendArgs::Item& item : items) {
    if (item.offloaded) continue;
    current.push_back({.span = item.span,
                       .rows = item.rows,
                       .slots = item.selection + item.count - 1,
                       .slot_stride = stride});
  }
  if (!current.empty()) {
    backend_.AppendRows({.k = scratch_.k, .v = scratch_.v, .items = current});
  }
}

// What the paper does: the predicted rows and the current one, whatever the true query says.
void Attention::AttendPredicted(uint32_t layer, uint32_t index) {
  CHECK(backend_.host_memory());
  const StepItem& item = items_[index];
  std::fill_n(scratch_.selection, config_.kv_heads, item.position);
  const RowFetcher::Request request =
      RequestFor({.index = index, .tokens = 1, .count = 1}, false, 0, 1);
  AttendArgs::Item alone;
  options_.fetcher->Bring(layer, {&request, 1}, 1, {&alone, 1}, &counts_[layer]);
  const RowFetcher::Prediction prediction = options_.fetcher->Predicted(layer, index);
  for (uint32_t head = 0; head < config_.kv_heads; ++head) {
    prediction.slots[head * prediction.stride + prediction.count] = scratch_.slots[head];
  }
  const uint64_t rows = uint64_t{prediction.count} * config_.kv_heads;
  for (RowCounts* counted : {&counts_[layer].rows, item.counts}) {
    if (!counted) continue;
    counted->selected += rows;
    counted->useful += prediction.brought;
    counted->hits += rows - prediction.brought;
  }
  const AttendArgs::Item attend = {.span = Span(index),
                                   .rows = item.device->Rows(layer),
                                   .selection = prediction.slots,
                                   .count = prediction.count + 1};
  AppendToSlots({&attend, 1}, prediction.stride);
  Timeline::Span span(options_.timeline, "attend", layer);
  Attend(layer, {&attend, 1}, prediction.stride);
}

void Attention::Attend(uint32_t layer, std::span<const AttendArgs::Item> items, size_t stride) {
  backend_.Attend({.q = scratch_.q,
                   .out = scratch_.attended,
                   .kv_heads = config_.kv_heads,
                   .group = config_.heads / config_.kv_heads,
                   .head_dim = config_.head_dim,
                   .scale = config_.attention_scale(),
                   .window = config_.window(layer),
                   .selection_stride = stride,
                   .items = items});
}

// Rows that are attended where they are: on the device, or in the segment.
void Attention::CountHere(uint32_t layer, const StepItem& item, uint64_t rows_per_head) {
  const uint64_t rows = rows_per_head * config_.kv_heads;
  for (RowCounts* counted : {&counts_[layer].rows, item.counts}) {
    counted->selected += rows;
    (item.device ? counted->hits : counted->missed) += rows;
  }
  if (!item.device) in_place_bytes_ += rows * options_.row_layout.row_bytes();
}

uint64_t Attention::direct_bytes() const {
  return in_place_bytes_ + (options_.fetcher ? options_.fetcher->direct_bytes() : 0);
}

RowTable Attention::PrefillRows(uint32_t block) const {
  return {options_.prefill, options_.prefill_blocks + block, &options_.prefill_layout};
}

RowTable Attention::HostRows(uint32_t layer, const StepItem& item) const {
  return RowsIn(options_.row_pool, layer, item);
}

RowTable Attention::RowsIn(std::byte* pool, uint32_t layer, const StepItem& item) const {
  return {pool + layer * options_.row_layout.layer_stride(), item.blocks, &options_.row_layout};
}

LabelTable Attention::Labels(uint32_t layer, const StepItem& item) const {
  CHECK(item.label_pages != nullptr);
  return {item.label_pages, &label_layout_, layer};
}

StepSpan Attention::Span(size_t index) const {
  const StepItem& item = items_[index];
  return {first_[index], static_cast<uint32_t>(item.ids.size()), item.position};
}

}  // namespace sparsekv
