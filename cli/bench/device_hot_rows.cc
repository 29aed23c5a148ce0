#include <algorithm>
#include <cstdlib>
#include <memory>

#include "base/log.h"
#include "cli/bench/device_cases.h"
#include "cli/bench/random_model.h"

// Hot rows of one layer: finding the slots of a step's rows, bringing those that have none, and
// attending to all of them while those come from the host. A fifth of a list was not in the one
// before it, nor in any that the slots still hold, so that the hit rate is 80 % whatever the number
// of slots; more slots are more to look through.
namespace sparsekv {
namespace {

constexpr uint32_t kFreshShare = 5;  // one in so many rows of a list is new
constexpr uint32_t kMostLists = 64;  // then they come again
constexpr size_t kHostAlign = 4096;
constexpr const char* kNames[] = {"resolve", "resolve_copy", "resolve_attend"};

using Freer = decltype([](void* memory) { std::free(memory); });

// Host memory that the device may read, as it reads the segment.
class HostRows {
 public:
  // Null, with a line in the log, where it may not.
  static std::unique_ptr<HostRows> Make(Backend& backend, size_t bytes) {
    auto* memory = static_cast<std::byte*>(std::aligned_alloc(kHostAlign, bytes));
    CHECK(memory != nullptr);
    // Ends up in the pool, which is random for all that follows.
    FillBf16(memory, bytes / sizeof(uint16_t), 1.0, 3);
    std::string why;
    if (backend.Share(memory, bytes, &why)) {
      return std::unique_ptr<HostRows>(new HostRows(backend, memory, bytes));
    }
    std::free(memory);
    spdlog::warn("resolve_attend is left out: {}", why);
    return nullptr;
  }
  ~HostRows() { backend_.Unshare(memory_.get(), bytes_); }
  HostRows(const HostRows&) = delete;

  std::byte* data() const { return memory_.get(); }

 private:
  HostRows(Backend& backend, std::byte* memory, size_t bytes)
      : backend_(backend), memory_(memory), bytes_(bytes) {}

  Backend& backend_;
  const std::unique_ptr<std::byte, Freer> memory_;
  const size_t bytes_;
};

// [list][kv_head][rows]: list i holds a window of a random order of tokens, ascending; the window
// moves by a fifth of itself from list to list, and list 0 follows the last.
class MovingLists {
 public:
  MovingLists(uint32_t rows, uint32_t kv_heads, uint32_t tokens, uint32_t most_slots)
      : rows_(rows), kv_heads_(kv_heads), fresh_(rows / kFreshShare) {
    lists_ = std::min(kMostLists, tokens / fresh_);
    CHECK_GE(lists_ * fresh_, most_slots + rows);  // what comes again was forgotten
    for (uint32_t list = 0; list < lists_; ++list) {
      for (uint32_t head = 0; head < kv_heads; ++head) Append(list, head, tokens);
    }
  }

  uint32_t lists() const { return lists_; }
  uint32_t fresh() const { return fresh_; }
  size_t list_entries() const { return size_t{rows_} * kv_heads_; }
  const std::vector<uint32_t>& all() const { return all_; }

 private:
  void Append(uint32_t list, uint32_t head, uint32_t tokens) {
    if (orders_.size() <= head) orders_.push_back(Shuffled(tokens, 200 + head));
    const uint32_t cycle = lists_ * fresh_;
    const size_t first = all_.size();
    for (uint32_t i = 0; i < rows_; ++i) {
      all_.push_back(orders_[head][(list * fresh_ + i) % cycle]);
    }
    std::sort(all_.begin() + static_cast<ptrdiff_t>(first), all_.end());
  }

  const uint32_t rows_, kv_heads_, fresh_;
  uint32_t lists_ = 0;
  std::vector<std::vector<uint32_t>> orders_;
  std::vector<uint32_t> all_;
};

struct Sizes {
  uint32_t batch = 0, rows = 0, slots = 0, tokens = 0;

  uint32_t slot_blocks() const { return (slots + kBlockTokens - 1) / kBlockTokens; }
  uint32_t token_blocks() const { return (tokens + kBlockTokens - 1) / kBlockTokens; }
};

RowLayout LayoutOf(const DeviceGrid::Model& model, size_t blocks) {
  return {.layers = 1,
          .kv_heads = model.kv_heads,
          .head_dim = model.head_dim,
          .dtype = DType::kBF16,
          .blocks = static_cast<uint32_t>(blocks)};
}

std::vector<SlotMeta> EmptySlots(size_t count) { return std::vector<SlotMeta>(count); }

// The slots of every sequence, in the pool, and the rows that they come from.
class HotRows {
 public:
  HotRows(DeviceBench& bench, const DeviceGrid::Model& model, const Sizes& sizes,
          const MovingLists& lists)
      : bench_(bench),
        kv_heads_(model.kv_heads),
        sizes_(sizes),
        lists_(lists),
        group_(model.heads / model.kv_heads),
        slot_layout_(LayoutOf(model, size_t{sizes.batch} * sizes.slot_blocks())),
        row_layout_(LayoutOf(model, size_t{sizes.batch} * sizes.token_blocks())),
        map_layout_{.sets = 1, .kv_heads = model.kv_heads},
        slot_blocks_(bench.backend(), Shuffled(slot_layout_.blocks, 11)),
        host_blocks_(bench.backend(), Shuffled(sizes.token_blocks(), 14)),
        landing_blocks_(bench.backend(), Shuffled(row_layout_.blocks, 15)),
        meta_(bench.backend(),
              EmptySlots(size_t{slot_layout_.blocks} * model.kv_heads * kBlockTokens)),
        map_(bench.backend(), row_layout_.blocks * map_layout_.page_bytes()),
        map_pages_(bench.backend(), Pages()),
        rows_(bench.backend(), lists.all()),
        slots_(bench.backend(), sizes.batch * lists.list_entries()),
        misses_(bench.backend(), sizes.batch * lists.list_entries()),
        resolved_(bench.backend(), size_t{sizes.batch} * model.kv_heads),
        q_(bench.backend(), size_t{sizes.batch} * model.width()),
        out_(bench.backend(), size_t{sizes.batch} * model.width()) {
    bench.backend().Fill(map_.data(), 0xFF, row_layout_.blocks * map_layout_.page_bytes());
  }

  static size_t PoolBytes(const DeviceGrid::Model& model, const Sizes& sizes) {
    const size_t blocks = sizes.slot_blocks() + sizes.token_blocks();
    return LayoutOf(model, sizes.batch * blocks).pool_bytes();
  }

  // To the list that follows, whatever the step: from list 0 on in each, a step of few runs would
  // find its rows in slots that the one before it filled.
  void Next() { ++stamp_; }

  // Rows without a slot come from the host's memory, where all sequences have the same rows, and
  // are left in the pool.
  void Attend(const HostRows& host) {
    std::vector<AttendArgs::Item> items;
    for (uint32_t s = 0; s < sizes_.batch; ++s) {
      items.push_back({.span = {.first = s, .tokens = 1, .position = sizes_.tokens - 1},
                       .rows = {.layer_base = host.data(),
                                .blocks = host_blocks_.data(),
                                .layout = &row_layout_},
                       .selection = List(s),
                       .count = sizes_.rows,
                       .offloaded = OffloadedRows{.hot = Table(s), .landing = Landing(s)}});
    }
    bench_.backend().Attend({.q = q_.data(),
                             .out = out_.data(),
                             .kv_heads = kv_heads_,
                             .group = group_,
                             .head_dim = row_layout_.head_dim,
                             .selection_stride = sizes_.rows,
                             .items = items});
  }

  void Resolve() {
    std::vector<ResolveArgs::Item> items;
    for (uint32_t s = 0; s < sizes_.batch; ++s) {
      const size_t at = s * lists_.list_entries();
      items.push_back({.table = Table(s),
                       .rows = List(s),
                       .count = sizes_.rows,
                       .hit_stamp = stamp_,
                       .miss_stamp = stamp_,
                       .slots = slots_.data() + at,
                       .misses = misses_.data() + at,
                       .miss_stride = sizes_.rows,
                       .by_place = true,
                       .resolved = resolved_.data() + size_t{s} * kv_heads_});
    }
    bench_.backend().Resolve({.kv_heads = kv_heads_, .stride = sizes_.rows, .items = items});
  }

  // From where they landed.
  void Copy() {
    std::vector<CopyRowsArgs::Item> items;
    for (uint32_t s = 0; s < sizes_.batch; ++s) {
      items.push_back({.from = Landing(s),
                       .to = Table(s).rows,
                       .moves = misses_.data() + s * lists_.list_entries(),
                       .stride = sizes_.rows,
                       .resolved = resolved_.data() + size_t{s} * kv_heads_});
    }
    bench_.backend().CopyRows({.kv_heads = kv_heads_, .items = items});
  }

  // Of the run that was last.
  double HitRate() const {
    std::vector<Resolved> resolved(size_t{sizes_.batch} * kv_heads_);
    bench_.backend().Download(resolved.data(), resolved_.data(),
                              resolved.size() * sizeof(Resolved));
    double hits = 0;
    for (const Resolved& one : resolved) hits += one.hits;
    return hits / static_cast<double>(resolved.size()) / sizes_.rows;
  }

 private:
  size_t RowBlock(uint32_t sequence) const { return size_t{sequence} * sizes_.token_blocks(); }
  const uint32_t* List(uint32_t sequence) const {
    const uint32_t list = (stamp_ + 5 * sequence) % lists_.lists();
    return rows_.data() + list * lists_.list_entries();
  }
  RowTable Landing(uint32_t sequence) const {
    return {.layer_base = bench_.pool().data() + slot_layout_.pool_bytes(),
            .blocks = landing_blocks_.data() + RowBlock(sequence),
            .layout = &row_layout_};
  }

  std::vector<std::byte*> Pages() const {
    std::vector<std::byte*> pages;
    for (uint32_t page : Shuffled(row_layout_.blocks, 13)) {
      pages.push_back(map_.data() + page * map_layout_.page_bytes());
    }
    return pages;
  }

  SlotTable Table(uint32_t sequence) const {
    return {.rows = {.layer_base = bench_.pool().data(),
                     .blocks = slot_blocks_.data() + size_t{sequence} * sizes_.slot_blocks(),
                     .layout = &slot_layout_},
            .slots = sizes_.slots,
            .meta = meta_.data(),
            .map_pages = map_pages_.data() + RowBlock(sequence),
            .map_layout = &map_layout_};
  }

  DeviceBench& bench_;
  const uint32_t kv_heads_;
  const Sizes sizes_;
  const MovingLists& lists_;
  const uint32_t group_;
  const RowLayout slot_layout_, row_layout_;
  const MapLayout map_layout_;
  DeviceArray<uint32_t> slot_blocks_, host_blocks_, landing_blocks_;
  DeviceArray<SlotMeta> meta_;
  DeviceArray<std::byte> map_;
  DeviceArray<std::byte*> map_pages_;
  DeviceArray<uint32_t> rows_, slots_;
  DeviceArray<RowMove> misses_;
  DeviceArray<Resolved> resolved_;
  DeviceArray<float> q_, out_;
  uint32_t stamp_ = 0;
};

void BenchSlots(DeviceBench& bench, const DeviceGrid::Model& model, const Sizes& sizes,
                const MovingLists& lists, const HostRows* host) {
  HotRows hot(bench, model, sizes, lists);
  const nlohmann::ordered_json params = {{"model", model.name},
                                         {"kv_heads", model.kv_heads},
                                         {"batch", sizes.batch},
                                         {"budget", sizes.rows},
                                         {"slots", sizes.slots}};
  const double heads = double(sizes.batch) * model.kv_heads;
  // Rows in, their places in the map and slots out; what every slot holds.
  const double resolve_bytes = heads * (10.0 * sizes.rows + sizeof(SlotMeta) * sizes.slots);
  const double missing = heads * lists.fresh() * double(LayoutOf(model, 1).row_bytes());
  const auto measure = [&](const char* name, double bytes, uint32_t operations, const auto& run) {
    BenchCase* item = bench.Measure(
        {.item = {name, params, bytes}, .items = operations * sizes.batch, .run = [&](uint32_t) {
           hot.Next();
           run();
         }});
    if (item) item->params["hit_rate"] = hot.HitRate();
  };
  measure("resolve", resolve_bytes, 1, [&] { hot.Resolve(); });
  measure("resolve_copy", missing, 2, [&] {
    hot.Resolve();
    hot.Copy();
  });
  if (host == nullptr) return;
  measure("resolve_attend", missing, 3, [&] {
    hot.Attend(*host);
    hot.Resolve();
    hot.Copy();
  });
}

}  // namespace

void BenchHotRows(DeviceBench& bench, const DeviceGrid& grid, const DeviceGrid::Model& model) {
  const auto wants = [&](const char* name) { return bench.Wants(name); };
  if (std::ranges::none_of(kNames, wants)) return;
  const uint32_t most_slots = *std::max_element(grid.hot_slots.begin(), grid.hot_slots.end());
  const MovingLists lists(grid.budget, model.kv_heads, grid.hot_context, most_slots);
  const RowLayout segment = LayoutOf(model, (grid.hot_context + kBlockTokens - 1) / kBlockTokens);
  std::unique_ptr<HostRows> host;
  if (wants("resolve_attend")) host = HostRows::Make(bench.backend(), segment.pool_bytes());
  for (uint32_t batch : grid.hot_batches) {
    for (uint32_t slots : grid.hot_slots) {
      const Sizes sizes = {
          .batch = batch, .rows = grid.budget, .slots = slots, .tokens = grid.hot_context};
      if (HotRows::PoolBytes(model, sizes) > bench.pool().size()) continue;
      BenchSlots(bench, model, sizes, lists, host.get());
    }
  }
}

}  // namespace sparsekv
