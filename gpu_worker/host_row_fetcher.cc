#include "gpu_worker/host_row_fetcher.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "base/check.h"

namespace sparsekv {

namespace {

double Seconds(Timeline::Clock::duration time) {
  return std::chrono::duration<double>(time).count();
}

}  // namespace

HostRowFetcher::HostRowFetcher(const Options& options)
    : options_(options), kv_heads_(options.host_layout.kv_heads) {
  for (Pending& pending : pending_) {
    pending.items.resize(options.max_batch);
    pending.resolved.resize(size_t{options.max_batch} * kv_heads_);
  }
}

void HostRowFetcher::BeginStep(size_t) {
  for (Pending& pending : pending_) {
    CHECK(pending.jobs.empty());
    pending.layer = kNoToken;
  }
}

HostRowFetcher::Pending& HostRowFetcher::Open(uint32_t layer) {
  Pending& pending = pending_[layer % 2];
  if (pending.layer == layer) return pending;
  CHECK(pending.jobs.empty());
  pending.layer = layer;
  pending.slots_used = 0;
  std::fill(pending.items.begin(), pending.items.end(), Pending::Item{});
  return pending;
}

void HostRowFetcher::Prefetch(uint32_t layer, std::span<const Request> requests, size_t stride,
                              bool keep) {
  Pending& pending = Open(layer);
  auto* moves = reinterpret_cast<RowMove*>(options_.lists);
  auto* slots = reinterpret_cast<uint32_t*>(moves + size_t{2} * options_.set_slots * kv_heads_);
  std::vector<ResolveArgs::Item> items;
  for (const Request& request : requests) {
    const SlotTable table = request.item->device->Slots(layer);
    const size_t offset = (size_t{layer % 2} * options_.set_slots + pending.slots_used) * kv_heads_;
    pending.slots_used += table.slots;
    CHECK_LE(pending.slots_used, options_.set_slots);
    Pending::Item& item = pending.items[request.index];
    item = {.item = request.item,
            .moves = moves + offset,
            .slots = slots + offset,
            .stride = table.slots,
            .count = request.count};
    ResolveArgs::Item& resolve = items.emplace_back(ResolvePredicted(layer, request));
    resolve.misses = item.moves;
    resolve.miss_stride = item.stride;
    resolve.resolved = pending.resolved.data() + size_t{request.index} * kv_heads_;
  }
  options_.backend->Resolve({.kv_heads = kv_heads_, .stride = stride, .items = items});
  for (const Request& request : requests) {
    Pending::Item& item = pending.items[request.index];
    for (uint32_t head = 0; keep && head < kv_heads_; ++head) {
      std::copy_n(request.slots + head * stride, request.count, item.slots + head * item.stride);
    }
  }
  StartJob(layer, pending, requests);
}

void HostRowFetcher::StartJob(uint32_t layer, Pending& pending, std::span<const Request> requests) {
  Pending::Job job;
  for (const Request& request : requests) {
    const Pending::Item& item = pending.items[request.index];
    const Resolved* resolved = pending.resolved.data() + size_t{request.index} * kv_heads_;
    for (uint32_t head = 0; head < kv_heads_; ++head) {
      if (resolved[head].misses == 0) continue;
      job.pieces.push_back({.from = HostRows(layer, *item.item),
                            .to = item.item->device->Rows(layer),
                            .kv_head = head,
                            .moves = item.moves + head * item.stride,
                            .count = resolved[head].misses,
                            .owner = item.item->owner,
                            .generations = item.item->generations});
      job.index.push_back(request.index);
    }
  }
  if (job.pieces.empty()) return;
  job.number = options_.prefetcher->Start(layer, job.pieces);
  pending.jobs.push_back(std::move(job));
}

double HostRowFetcher::Settle(uint32_t layer, bool finish, LayerCounts* counts) {
  Pending& pending = pending_[layer % 2];
  if (pending.layer != layer || pending.jobs.empty()) return 0;
  const auto begin = Timeline::Clock::now();
  for (Pending::Job& job : pending.jobs) SettleJob(layer, job, finish, counts);
  pending.jobs.clear();
  return Seconds(Timeline::Clock::now() - begin);
}

void HostRowFetcher::SettleJob(uint32_t layer, Pending::Job& job, bool finish,
                               LayerCounts* counts) {
  Prefetcher& prefetcher = *options_.prefetcher;
  uint64_t done = finish ? prefetcher.Finish(job.number) : prefetcher.Stop(job.number);
  std::vector<ForgetArgs::Item> forget;
  for (size_t i = 0; i < job.pieces.size(); ++i) {
    const PrefetchPiece& piece = job.pieces[i];
    Pending::Item& pending = pending_[layer % 2].items[job.index[i]];
    const StepItem& item = *pending.item;
    const auto here = static_cast<uint32_t>(std::min<uint64_t>(done, piece.count));
    done -= here;
    pending.brought += here;
    counts->rows.prefetched += here;
    counts->cut += piece.count - here;
    if (item.counts) item.counts->prefetched += here;
    if (here < piece.count) {
      forget.push_back({.table = item.device->Slots(layer),
                        .kv_head = piece.kv_head,
                        .moves = {piece.moves + here, piece.count - here}});
    }
  }
  CHECK_EQ(done, uint64_t{0});
  options_.backend->Forget({.items = forget});
}

bool HostRowFetcher::predicted(uint32_t layer, uint32_t index) const {
  const Pending& pending = pending_[layer % 2];
  return pending.layer == layer && pending.items[index].item != nullptr;
}

HostRowFetcher::Prediction HostRowFetcher::Predicted(uint32_t layer, uint32_t index) const {
  CHECK(predicted(layer, index));
  const Pending::Item& item = pending_[layer % 2].items[index];
  return {item.slots, item.stride, item.count, item.brought};
}

template <typename Copy>
double HostRowFetcher::Transfer(size_t bytes, const Copy& copy) {
  const auto begin = Timeline::Clock::now();
  auto arrival = begin;
  if (options_.link && bytes > 0) arrival = options_.link->Send(bytes);
  copy();
  std::this_thread::sleep_until(arrival);
  direct_bytes_ += bytes;
  return Seconds(Timeline::Clock::now() - begin);
}

void HostRowFetcher::Bring(uint32_t layer, std::span<const Request> requests, size_t stride,
                           std::span<AttendArgs::Item> attend, LayerCounts* counts) {
  std::vector<ResolveArgs::Item> items;
  std::vector<CopyRowsArgs::Item> copies;
  for (size_t i = 0; i < requests.size(); ++i) {
    const Request& request = requests[i];
    const RowSets& sets = *request.item->device;
    attend[i].rows = sets.Rows(layer);
    attend[i].selection = request.slots;
    ResolveArgs::Item& resolve =
        items.emplace_back(ResolveSelected(layer, request, predicted(layer, request.index)));
    resolve.misses = request.misses;
    resolve.miss_stride = stride;
    resolve.resolved = request.resolved;
    copies.push_back({.from = HostRows(layer, *request.item),
                      .to = sets.Rows(layer),
                      .moves = request.misses,
                      .stride = stride,
                      .resolved = request.resolved});
  }
  options_.backend->Resolve({.kv_heads = kv_heads_, .stride = stride, .items = items});
  uint64_t missed = 0;
  for (const Request& request : requests) {
    RowCounts own;
    for (uint32_t head = 0; head < kv_heads_; ++head) {
      const Resolved& resolved = request.resolved[head];
      own.selected += request.count;
      own.hits += resolved.hits - resolved.useful;
      own.useful += resolved.useful;
      own.missed += resolved.misses;
    }
    for (RowCounts* to : {&counts->rows, request.item->counts}) {
      if (!to) continue;
      to->selected += own.selected;
      to->hits += own.hits;
      to->useful += own.useful;
      to->missed += own.missed;
    }
    missed += own.missed;
  }
  if (missed == 0) return;
  Timeline::Span span(options_.timeline, "correct", layer);
  span.set_rows(missed);
  const double seconds = Transfer(missed * options_.host_layout.row_bytes(), [&] {
    options_.backend->CopyRows({.kv_heads = kv_heads_, .items = copies});
  });
  counts->rows.stall_s += seconds;
  for (const Request& request : requests) {
    if (request.item->counts) request.item->counts->stall_s += seconds;
  }
}

void HostRowFetcher::Stream(uint32_t layer, const StepItem& item, uint32_t first, uint32_t tokens,
                            const RowTable* to, LayerCounts* counts) {
  Timeline::Span span(options_.timeline, "stream", layer);
  const uint64_t rows = uint64_t{tokens - first} * kv_heads_;
  span.set_rows(rows);
  std::vector<RowMove> moves;
  for (uint32_t t = first; t < tokens; ++t) moves.push_back({t, t});
  const std::vector<Resolved> all(kv_heads_, Resolved{.misses = tokens - first});
  const double seconds = Transfer(rows * options_.host_layout.row_bytes(), [&] {
    if (!to) return;
    const CopyRowsArgs::Item copy = {.from = HostRows(layer, item),
                                     .to = *to,
                                     .moves = moves.data(),
                                     .stride = 0,
                                     .resolved = all.data()};
    options_.backend->CopyRows({.kv_heads = kv_heads_, .items = {&copy, 1}});
  });
  for (RowCounts* counted : {&counts->rows, item.counts}) {
    if (!counted) continue;
    counted->selected += rows;
    counted->missed += rows;
    counted->stall_s += seconds;
  }
}

RowTable HostRowFetcher::HostRows(uint32_t layer, const StepItem& item) const {
  return {options_.host_pool + layer * options_.host_layout.layer_stride(), item.blocks,
          &options_.host_layout};
}

}  // namespace sparsekv
