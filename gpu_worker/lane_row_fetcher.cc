#include "gpu_worker/lane_row_fetcher.h"

#include <algorithm>

#include "base/check.h"

namespace sparsekv {

namespace {

// A layer has at most one call per item and direction: rounds of a batch are never emptier.
size_t MostCalls(uint32_t layers, uint32_t max_batch) { return size_t{2} * layers * max_batch; }

// What a call writes into the journal first; a Resolved for every item and KV head follows.
struct Note {
  CopyProgress progress;
  CopyTimes times;
};

size_t NoteBytes(size_t items, uint32_t kv_heads) {
  const size_t resolved = items * kv_heads * sizeof(Resolved);
  return sizeof(Note) + (resolved + alignof(Note) - 1) / alignof(Note) * alignof(Note);
}

}  // namespace

size_t LaneRowFetcher::JournalBytes(uint32_t layers, uint32_t max_batch, uint32_t kv_heads) {
  return MostCalls(layers, max_batch) * NoteBytes(1, kv_heads);
}

LaneRowFetcher::LaneRowFetcher(const Options& options)
    : options_(options),
      kv_heads_(options.host_layout.kv_heads),
      most_calls_(MostCalls(options.layers, options.max_batch)),
      predicted_(2, std::vector<bool>(options.max_batch)) {}

CopyProgress* LaneRowFetcher::progress(const Call& call) const {
  return &reinterpret_cast<Note*>(options_.journal + call.note)->progress;
}

CopyTimes* LaneRowFetcher::times(const Call& call) const {
  return &reinterpret_cast<Note*>(options_.journal + call.note)->times;
}

Resolved* LaneRowFetcher::resolved(const Call& call, size_t item) const {
  return reinterpret_cast<Resolved*>(options_.journal + call.note + sizeof(Note)) +
         item * kv_heads_;
}

void LaneRowFetcher::BeginStep(size_t items) {
  CHECK_LE(items, size_t{options_.max_batch});
  calls_.clear();
  CHECK(!given_);  // FetchNotes waited
  journal_used_ = 0;
  open_layer_[0] = open_layer_[1] = kNoToken;
  // As much as the step can need, which is the same in every step of so many items.
  const auto batch = static_cast<uint32_t>(std::max<size_t>(items, 1));
  options_.backend->Fill(options_.journal, 0, JournalBytes(options_.layers, batch, kv_heads_));
}

LaneRowFetcher::Call& LaneRowFetcher::Begin(uint32_t layer, bool ahead,
                                            std::span<const Request> requests) {
  CHECK_LT(calls_.size(), most_calls_);
  Call& call = calls_.emplace_back();
  call.layer = layer;
  call.ahead = ahead;
  call.note = journal_used_;
  for (const Request& request : requests) {
    call.items.push_back(request.item);
    call.index.push_back(request.index);
    call.count.push_back(request.count);
  }
  journal_used_ += NoteBytes(requests.size(), kv_heads_);
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
    resolve.map_misses = false;
    resolve.misses = moves + (size_t{half} * options_.set_slots + slots_used_[half]) * kv_heads_;
    resolve.miss_stride = resolve.table.slots;
    resolve.resolved = resolved(call, i);
    slots_used_[half] += resolve.table.slots;
    CHECK_LE(slots_used_[half], options_.set_slots);
    predicted_[half][request.index] = true;
    call.copies.push_back({{.from = HostRows(layer, *request.item),
                            .to = request.item->device->Rows(layer),
                            .moves = resolve.misses,
                            .stride = resolve.miss_stride,
                            .resolved = resolve.resolved},
                           resolve.table});
  }
  Backend& backend = *options_.backend;
  // The lists, and a set that is shared, were those of the layer before the one that attends now.
  if (given_) backend.WaitFor(*given_);
  backend.Resolve({.kv_heads = kv_heads_, .stride = stride, .items = items});
  call.listed = backend.Mark();
}

// The layer's attention ends its prefetch.
double LaneRowFetcher::Settle(uint32_t, bool finish, LayerCounts*) {
  CHECK(!finish);
  return 0;
}

void LaneRowFetcher::EndLayer(uint32_t layer) {
  Backend& backend = *options_.backend;
  std::optional<uint32_t> attended;
  for (Call& call : calls_) {
    if (!call.ahead || call.layer != layer + 1) continue;
    if (!attended) attended = backend.Mark();
    backend.UseLane(Lane::kPrefetch);
    backend.WaitFor(*attended);
    backend.WaitFor(call.listed);
    backend.CopyAhead({.kv_heads = kv_heads_, .items = call.copies, .progress = progress(call)});
    call.copied = backend.Mark();
    backend.UseLane(Lane::kCompute);
  }
}

// On the keep lane, of the prefetches that the last attention stopped.
void LaneRowFetcher::ForgetRest() {
  Backend& backend = *options_.backend;
  for (Call& call : calls_) {
    if (!call.ahead || call.layer != giving_.layer || call.forgotten) continue;
    if (std::ranges::find_first_of(call.index, giving_.index) == call.index.end()) continue;
    call.forgotten = true;
    backend.WaitFor(call.copied);
    std::vector<ForgetRestArgs::Item> items;
    for (const CopyAheadArgs::Item& copy : call.copies) {
      items.push_back({.table = copy.table,
                       .moves = copy.rows.moves,
                       .stride = copy.rows.stride,
                       .resolved = copy.rows.resolved});
    }
    backend.ForgetRest({.kv_heads = kv_heads_, .items = items, .progress = progress(call)});
  }
}

// Of the call that predicted the item; null: none.
CopyProgress* LaneRowFetcher::ProgressOf(uint32_t layer, uint32_t index) const {
  for (const Call& call : calls_) {
    if (!call.ahead || call.layer != layer) continue;
    if (std::ranges::find(call.index, index) != call.index.end()) return progress(call);
  }
  return nullptr;
}

bool LaneRowFetcher::predicted(uint32_t layer, uint32_t index) const {
  return open_layer_[layer % 2] == layer && predicted_[layer % 2][index];
}

RowFetcher::Prediction LaneRowFetcher::Predicted(uint32_t, uint32_t) const {
  CHECK(!"predictions are always corrected here");
  return {};
}

void LaneRowFetcher::WaitForKeepLane() {
  if (given_) options_.backend->WaitFor(*given_);
  given_.reset();
}

// No slot of the layer is taken from its row any more, too.
void LaneRowFetcher::BeginLists(uint32_t layer) {
  WaitForKeepLane();
  for (const Call& call : calls_) {
    if (call.ahead && call.layer == layer) options_.backend->WaitFor(call.listed);
  }
}

void LaneRowFetcher::Bring(uint32_t layer, std::span<const Request> requests, size_t stride,
                           std::span<AttendArgs::Item> attend, LayerCounts*) {
  Call& call = Begin(layer, false, requests);
  giving_ = {.layer = layer, .index = call.index, .stride = stride};
  uint32_t landed = 0;  // blocks
  for (size_t i = 0; i < requests.size(); ++i) {
    const Request& request = requests[i];
    const RowSets& sets = *request.item->device;
    OffloadedRows rows{.times = times(call)};
    // A shared set holds nothing but the layer's prediction. What GiveSlots adds to it was never
    // brought; whoever uses the set next clears it, or does not look.
    const bool looked_for = !sets.shared() || predicted(layer, request.index);
    call.resolved.push_back(looked_for);
    if (!looked_for) {
      rows.landing = sets.Rows(layer);  // which nothing else uses
      rows.kept = false;
    } else {
      rows.hot = sets.Slots(layer);
      rows.ahead = ProgressOf(layer, request.index);
      ResolveArgs::Item& resolve =
          giving_.resolve.emplace_back(ResolveSelected(layer, request, true));
      resolve.current = kNoToken;  // its row is brought as any other
      resolve.misses = request.misses;
      resolve.miss_stride = stride;
      resolve.by_place = true;
      resolve.resolved = resolved(call, i);
    }
    if (!sets.shared()) {
      rows.landing = {options_.landing, options_.landing_blocks + landed, &options_.landing_layout};
      landed += (request.count + kBlockTokens - 1) / kBlockTokens;
      CHECK_LE(landed, options_.landing_layout.blocks);
      giving_.copies.push_back({.from = rows.landing,
                                .to = sets.Rows(layer),
                                .moves = request.misses,
                                .stride = stride,
                                .resolved = giving_.resolve.back().resolved});
    }
    attend[i].rows = HostRows(layer, *request.item);
    attend[i].selection = request.rows;
    attend[i].offloaded = rows;
  }
}

void LaneRowFetcher::GiveSlots() {
  if (giving_.resolve.empty()) return;
  Backend& backend = *options_.backend;
  const uint32_t attended = backend.Mark();
  backend.UseLane(Lane::kKeep);
  backend.WaitFor(attended);
  ForgetRest();
  backend.Resolve({.kv_heads = kv_heads_, .stride = giving_.stride, .items = giving_.resolve});
  if (!giving_.copies.empty()) {
    backend.CopyRows({.kv_heads = kv_heads_, .items = giving_.copies});
  }
  given_ = backend.Mark();
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
  options_.backend->CopyRows({.kv_heads = kv_heads_, .items = {&copy, 1}, .times = times(call)});
}

void LaneRowFetcher::FetchNotes() {
  if (calls_.empty()) return;
  WaitForKeepLane();  // the journal is written
  seen_.resize(journal_used_ / sizeof(uint64_t));
  options_.backend->Fetch(seen_.data(), options_.journal, journal_used_);
}

void LaneRowFetcher::EndStep(std::vector<LayerCounts>* counts) {
  const auto* seen = reinterpret_cast<const std::byte*>(seen_.data());
  for (const Call& call : calls_) {
    const auto& note = *reinterpret_cast<const Note*>(seen + call.note);
    const std::span found(reinterpret_cast<const Resolved*>(&note + 1),
                          call.items.size() * kv_heads_);
    LayerCounts* layer = &(*counts)[call.layer];
    if (call.ahead) {
      CountAhead(call, note.progress, found, layer);
    } else {
      CountBrought(call, note.times, found, layer);
    }
  }
  calls_.clear();
}

void LaneRowFetcher::CountAhead(const Call& call, const CopyProgress& progress,
                                std::span<const Resolved> found, LayerCounts* counts) {
  uint64_t left = uint64_t{progress.slices} * kCopySliceRows;
  for (size_t i = 0; i < call.items.size(); ++i) {
    for (uint32_t head = 0; head < kv_heads_; ++head) {
      const uint32_t wanted = found[i * kv_heads_ + head].misses;
      const auto here = static_cast<uint32_t>(std::min<uint64_t>(left, wanted));
      left -= here;
      counts->rows.prefetched += here;
      direct_bytes_ += here * options_.host_layout.row_bytes();
      counts->cut += wanted - here;
      if (call.items[i]->counts) call.items[i]->counts->prefetched += here;
    }
  }
}

// What of an item's rows was there, over its KV heads. The current token's row was made by the step
// itself and has no slot before GiveSlots: there it is a miss, here it is none.
RowCounts LaneRowFetcher::Brought(const Call& call, size_t item,
                                  std::span<const Resolved> seen) const {
  const uint64_t rows = uint64_t{call.count[item]} * kv_heads_;
  RowCounts counts{.selected = rows};
  if (call.streamed) {
    counts.missed = rows;
    return counts;
  }
  for (uint32_t head = 0; head < kv_heads_; ++head) {
    Resolved found{.misses = call.count[item]};
    if (call.resolved[item]) found = seen[item * kv_heads_ + head];
    CHECK_GE(found.misses, 1u);
    counts.hits += found.hits - found.useful + 1;
    counts.useful += found.useful;
    counts.missed += found.misses - 1;
  }
  return counts;
}

void LaneRowFetcher::CountBrought(const Call& call, const CopyTimes& times,
                                  std::span<const Resolved> found, LayerCounts* counts) {
  uint64_t missed = 0;
  for (size_t i = 0; i < call.items.size(); ++i) {
    const RowCounts own = Brought(call, i, found);
    for (RowCounts* to : {&counts->rows, call.items[i]->counts}) {
      if (!to) continue;
      to->selected += own.selected;
      to->hits += own.hits;
      to->useful += own.useful;
      to->missed += own.missed;
    }
    missed += own.missed;
  }
  // The current rows were read with the others.
  const uint64_t made = call.streamed ? 0 : call.items.size() * kv_heads_;
  direct_bytes_ += (missed + made) * options_.host_layout.row_bytes();
  if (missed == 0) return;
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
