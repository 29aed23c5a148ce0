#pragma once

// What the tests of hot rows and of their prefetch share: a cache on a little device, and lists of
// rows that resemble those of one step after the other.
#include <set>

#include "kernels/test_cases.h"

namespace sparsekv::testing {

// One row set on its own little device, and the host rows that it caches.
struct RowSet {
  RowSet(Random& random, uint32_t heads, uint32_t slot_count, uint32_t tokens,
         uint32_t head_dim = 8, DType dtype = DType::kF32)
      : host(random, heads, head_dim, dtype, {tokens}),
        device(random, heads, head_dim, dtype, {slot_count}),
        map_layout{.sets = 3, .kv_heads = heads} {
    host.Fill(random, 0, tokens);
    meta.resize(size_t{device.layout().blocks} * heads * kBlockTokens);
    const uint32_t pages = (tokens + kBlockTokens - 1) / kBlockTokens;
    map.assign(pages * map_layout.page_bytes(), std::byte{0xFF});
    for (uint32_t i = 0; i < pages; ++i) {
      map_pages.push_back(map.data() + i * map_layout.page_bytes());
    }
    table = {.rows = device.Table(0),
             .slots = slot_count,
             .meta = meta.data(),
             .map_pages = map_pages.data(),
             .map_layout = &map_layout,
             .set = 1};
  }

  Rows host, device;
  MapLayout map_layout;
  Shared<SlotMeta> meta;
  Shared<std::byte> map;
  Shared<std::byte*> map_pages;
  SlotTable table;
};

// Mostly rows of a slowly moving window and some from anywhere, ascending, the newest always.
inline std::vector<uint32_t> RandomList(Random& random, uint32_t count, uint32_t tokens,
                                        uint32_t step) {
  std::set<uint32_t> list = {tokens - 1};
  while (list.size() < count) {
    const uint32_t near = (step / 4 + random.Between(0, count * 3 / 2)) % tokens;
    list.insert(random.Between(0, 3) ? near : random.Between(0, tokens - 1));
  }
  return {list.begin(), list.end()};
}

// What Resolve reads and writes for one sequence, for lists of up to `most` rows.
struct Lists {
  Lists(uint32_t heads, size_t most)
      : stride(most),
        rows(heads * most),
        slots(heads * most),
        misses(heads * most),
        counts(heads) {}

  size_t stride;
  Shared<uint32_t> rows, slots;
  Shared<RowMove> misses;
  Shared<Resolved> counts;
};

}  // namespace sparsekv::testing
