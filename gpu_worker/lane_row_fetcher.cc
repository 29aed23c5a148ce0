#include "gpu_worker/lane_row_fetcher.h"

#include <algorithm>

#include "base/check.h"

namespace sparsekv {

namespace {

// A layer has at most one call per item and direction: rounds of a batch are never emptier.
size_t MostCalls(uint32_t layers, uint32_t max_batch) { return size_t{2} * layers * max_batch; }

}  // namespace

// [calls] progress, [calls] times, then [calls' items][kv_heads] resolved.
size_t LaneRowFetcher::JournalBytes(uint32_t layers, uint32_t max_batch, uint32_t kv_heads) {
  const size_t calls = MostCalls(layers, max_batch);
  return calls * (sizeof(CopyProgress) + sizeof(CopyTimes) + kv_heads * sizeof(Resolved));
}

LaneRowFetcher::LaneRowFetcher(const Options& options)
    : options_(options),
      kv_heads_(options.host_layout.kv_heads),
      most_calls_(MostCalls(options.layers, options.max_batch)),
      predicted_(2, std::vector<bool>(options.max_batch)) {}

CopyProgress* LaneRowFetcher::progress() const {
  return reinterpret_cast<CopyProgress*>(options_.journal);
}

CopyTimes* LaneRowFetcher::times() const {
  return reinterpret_cast<CopyTimes*>(progress() + most_calls_);
}

Resolved* LaneRowFetcher::resolved() const {
  return reinterpret_cast<Resolved*>(times() + most_calls_);
}

void LaneRowFetcher::BeginStep(size_t items) {
  CHECK_LE(items, size_t{options_.max_batch});
  calls_.clear();
  CHECK(!kept_);  // FetchNotes waited
  resolved_used_ = 0;
  open_layer_[0] = open_layer_[1] = kNoToken;
  // As many as the step can need, which is the same in every step of so many items.
  const size_t calls = 2 * options_.layers * std::max<size_t>(items, 1);
  options_.backend->Fill(progress(), 0, calls * sizeof(CopyProgress));
  options_.backend->Fill(times(), 0, calls * sizeof(CopyTimes));
}

LaneRowFetcher::Call& LaneRowFetcher::Begin(uint32_t layer, bool ahead,
                                            std::span<const Request> requests) {
  CHECK_LT(calls_.size(), most_calls_);
  Call& call = calls_.emplace_back();
  call.layer = layer;
  call.ahead = ahead;
  call.first_resolved = resolved_used_;
  for (const Request& request : requests) {
    call.items.push_back(request.item);
    call.index.push_back(request.index);
    call.count.push_back(request.count);
  }
  resolved_used_ += requests.size() * kv_heads_;
  return call;
}

void LaneRowFetcher::Prefetch(uint32_t layer, std::span<const Request> requests, size_t stride,
                              bool keep) {
  CHECK(!keep);
  const uint32_t half = layer % 2;
  if (open_layer_[half] != layer) {
    open_layer_[half] = layer;
    slots_used_[half] = 0;
    predicted_[half].assign(options_.max_batch, false);
  }
  Call& call = Begin(layer, true, requests);
  auto* moves = reinterpret_cast<RowMove*>(options_.lists);
  std::vector<ResolveArgs::Item> items;
  for (size_t i = 0; i < requests.size(); ++i) {
    const Request& request = requests[i];
    ResolveArgs::Item& resolve = items.emplace_back(ResolvePredicted(layer, request));
    resolve.misses = moves + (size_t{half} * options_.set_slots + slots_used_[half]) * kv_heads_;
    resolve.miss_stride = resolve.table.slots;
    resolve.resolved = resolved() + call.first_resolved + i * kv_heads_;
    slots_used_[half] += resolve.table.slots;
    CHECK_LE(slots_used_[half], options_.set_slots);
    predicted_[half][request.index] = true;
    call.copies.push_back({.from = HostRows(layer, *request.item),
                           .to = request.item->device->Rows(layer),
                           .moves = resolve.misses,
                           .stride = resolve.miss_stride,
                           .resolved = resolve.resolved});
  }
  Backend& backend = *options_.backend;
  // A set that is shared was the layer's before the one that attends now.
  if (kept_ && requests[0].item->device->shared()) backend.WaitFor(*kept_);
  backend.Resolve({.kv_heads = kv_heads_, .stride = stride, .items = items});
  const uint32_t listed = backend.Mark();
  backend.UseLane(Lane::kPrefetch);
  backend.WaitFor(listed);
  backend.CopyAhead({.kv_heads = kv_heads_,
                     .items = call.copies,
                     .progress = progress() + (&call - calls_.data())});
  call.mark = backend.Mark();
  backend.UseLane(Lane::kPredict);
}

double LaneRowFetcher::Settle(uint32_t layer, bool finish, LayerCounts*) {
  Backend& backend = *options_.backend;
  for (Call& call : calls_) {
    if (!call.ahead || call.layer != layer || call.settled) continue;
    call.settled = true;
    CopyProgress* at = progress() + (&call - calls_.data());
    if (!finish) backend.StopCopy(at);
    backend.WaitFor(call.mark);
    if (finish) continue;
    std::vector<ForgetRestArgs::Item> items;
    for (size_t i = 0; i < call.items.size(); ++i) {
      items.push_back({.table = call.items[i]->device->Slots(layer),
                       .moves = call.copies[i].moves,
                       .stride = call.copies[i].stride,
                       .resolved = call.copies[i].resolved});
    }
    backend.ForgetRest({.kv_heads = kv_heads_, .items = items, .progress = at});
  }
  return 0;
}

bool LaneRowFetcher::predicted(uint32_t layer, uint32_t index) const {
  return open_layer_[layer % 2] == layer && predicted_[layer % 2][index];
}

RowFetcher::Prediction LaneRowFetcher::Predicted(uint32_t, uint32_t) const {
  CHECK(!"predictions are always corrected here");
  return {};
}

void LaneRowFetcher::BeginLists() {
  if (kept_) options_.backend->WaitFor(*kept_);
  kept_.reset();
}

void LaneRowFetcher::Bring(uint32_t layer, std::span<const Request> requests, size_t stride,
                           std::span<AttendArgs::Item> attend, LayerCounts*) {
  Call& call = Begin(layer, false, requests);
  keeping_ = {.stride = stride};
  uint32_t landed = 0;  // blocks
  for (size_t i = 0; i < requests.size(); ++i) {
    const Request& request = requests[i];
    const RowSets& sets = *request.item->device;
    OffloadedRows rows{.times = times() + (&call - calls_.data())};
    const bool looked_for = !sets.shared() || predicted(layer, request.index);
    call.resolved.push_back(looked_for);
    if (looked_for) {
      rows.hot = sets.Slots(layer);
      ResolveArgs::Item& resolve =
          keeping_.resolve.emplace_back(ResolveSelected(layer, request, true));
      resolve.current = kNoToken;  // its row is brought as any other
      resolve.misses = request.misses;
      resolve.miss_stride = stride;
      resolve.by_place = true;
      resolve.resolved = resolved() + call.first_resolved + i * kv_heads_;
    }
    if (!sets.shared()) {
      rows.landing = {options_.landing, options_.landing_blocks + landed, &options_.landing_layout};
      landed += (request.count + kBlockTokens - 1) / kBlockTokens;
      CHECK_LE(landed, options_.landing_layout.blocks);
      keeping_.copies.push_back({.from = rows.landing,
                                 .to = sets.Rows(layer),
                                 .moves = request.misses,
                                 .stride = stride,
                                 .resolved = keeping_.resolve.back().resolved});
    }
    attend[i].rows = HostRows(layer, *request.item);
    attend[i].selection = request.rows;
    attend[i].offloaded = rows;
  }
}

void LaneRowFetcher::Keep() {
  if (keeping_.resolve.empty()) return;
  Backend& backend = *options_.backend;
  const uint32_t attended = backend.Mark();
  backend.UseLane(Lane::kKeep);
  backend.WaitFor(attended);
  backend.Resolve({.kv_heads = kv_heads_, .stride = keeping_.stride, .items = keeping_.resolve});
  if (!keeping_.copies.empty()) {
    backend.CopyRows({.kv_heads = kv_heads_, .items = keeping_.copies});
  }
  kept_ = backend.Mark();
  backend.UseLane(Lane::kCompute);
}

void LaneRowFetcher::Stream(uint32_t layer, const StepItem& item, uint32_t first, uint32_t tokens,
                            const RowTable* to, LayerCounts*) {
  // Neither windows nor recall targets on a device of its own: backend_limits.h.
  CHECK(first == 0 && to != nullptr);
  if (tokens == 0) return;
  Request request{.item = &item, .count = tokens};
  Call& call = Begin(layer, false, {&request, 1});
  call.streamed = true;
  const CopyRowsArgs::Item copy = {.from = HostRows(layer, item), .to = *to, .first_rows = tokens};
  options_.backend->CopyRows(
      {.kv_heads = kv_heads_, .items = {&copy, 1}, .times = times() + (&call - calls_.data())});
}

void LaneRowFetcher::FetchNotes() {
  progress_seen_.resize(calls_.size());
  times_seen_.resize(calls_.size());
  resolved_seen_.resize(resolved_used_);
  if (calls_.empty()) return;
  BeginLists();  // the journal is written
  Backend& backend = *options_.backend;
  backend.Fetch(progress_seen_.data(), progress(), calls_.size() * sizeof(CopyProgress));
  backend.Fetch(times_seen_.data(), times(), calls_.size() * sizeof(CopyTimes));
  backend.Fetch(resolved_seen_.data(), resolved(), resolved_used_ * sizeof(Resolved));
}

void LaneRowFetcher::EndStep(std::vector<LayerCounts>* counts) {
  for (size_t i = 0; i < calls_.size(); ++i) {
    LayerCounts* layer = &(*counts)[calls_[i].layer];
    if (calls_[i].ahead) {
      CountAhead(calls_[i], progress_seen_[i], layer);
    } else {
      CountBrought(calls_[i], times_seen_[i], layer);
    }
  }
  calls_.clear();
}

void LaneRowFetcher::CountAhead(const Call& call, const CopyProgress& progress,
                                LayerCounts* counts) {
  uint64_t left = uint64_t{progress.slices} * kCopySliceRows;
  for (size_t i = 0; i < call.items.size(); ++i) {
    for (uint32_t head = 0; head < kv_heads_; ++head) {
      const uint32_t wanted = resolved_seen_[call.first_resolved + i * kv_heads_ + head].misses;
      const auto here = static_cast<uint32_t>(std::min<uint64_t>(left, wanted));
      left -= here;
      counts->rows.prefetched += here;
      direct_bytes_ += here * options_.host_layout.row_bytes();
      counts->cut += wanted - here;
      if (call.items[i]->counts) call.items[i]->counts->prefetched += here;
    }
  }
  if (progress.stopped_ns == 0 || progress.finished_ns <= progress.stopped_ns) return;
  AddStall(call, 1e-9 * static_cast<double>(progress.finished_ns - progress.stopped_ns), counts);
}

// What of an item's rows was there, over its KV heads. The current token's row was made by the step
// itself and has no slot before Keep: there it is a miss, here it is none.
RowCounts LaneRowFetcher::Brought(const Call& call, size_t item) const {
  const uint64_t rows = uint64_t{call.count[item]} * kv_heads_;
  RowCounts counts{.selected = rows};
  if (call.streamed) {
    counts.missed = rows;
    return counts;
  }
  for (uint32_t head = 0; head < kv_heads_; ++head) {
    Resolved found{.misses = call.count[item]};
    if (call.resolved[item]) {
      found = resolved_seen_[call.first_resolved + item * kv_heads_ + head];
    }
    CHECK_GE(found.misses, 1u);
    counts.hits += found.hits - found.useful + 1;
    counts.useful += found.useful;
    counts.missed += found.misses - 1;
  }
  return counts;
}

void LaneRowFetcher::CountBrought(const Call& call, const CopyTimes& times, LayerCounts* counts) {
  uint64_t missed = 0;
  for (size_t i = 0; i < call.items.size(); ++i) {
    const RowCounts own = Brought(call, i);
    for (RowCounts* to : {&counts->rows, call.items[i]->counts}) {
      if (!to) continue;
      to->selected += own.selected;
      to->hits += own.hits;
      to->useful += own.useful;
      to->missed += own.missed;
    }
    missed += own.missed;
  }
  direct_bytes_ += missed * options_.host_layout.row_bytes();
  if (times.end_ns <= times.begin_ns || times.begin_ns == 0) return;
  AddStall(call, 1e-9 * static_cast<double>(times.end_ns - times.begin_ns), counts);
}

void LaneRowFetcher::AddStall(const Call& call, double seconds, LayerCounts* counts) {
  counts->rows.stall_s += seconds;
  for (const StepItem* item : call.items) {
    if (item->counts) item->counts->stall_s += seconds;
  }
}

RowTable LaneRowFetcher::HostRows(uint32_t layer, const StepItem& item) const {
  return {options_.host_pool + layer * options_.host_layout.layer_stride(), item.blocks,
          &options_.host_layout};
}

}  // namespace sparsekv
