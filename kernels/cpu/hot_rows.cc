#include <algorithm>

#include "base/check.h"
#include "kernels/cpu/operations.h"
#include "kernels/plain.h"

namespace sparsekv::cpu {
namespace {

// Rows of one task of CopyRows: 64 rows of 512 bytes take some 10 microseconds.
constexpr uint32_t kCopyRows = 64;

void Clear(const SlotTable& table, uint32_t head) {
  for (uint32_t slot = 0; slot < table.slots; ++slot) {
    SlotMeta& meta = table.Meta(head, slot);
    if (meta.token != kNoToken) table.SlotOf(head, meta.token) = kNotHot;
    meta = SlotMeta{};
  }
}

// The `count` slots that were used longest ago, by (last use, slot), as the keys' low halves.
void FindVictims(const SlotTable& table, uint32_t head, uint32_t in_use, uint32_t count,
                 uint64_t* keys) {
  uint32_t found = 0;
  for (uint32_t slot = 0; slot < table.slots; ++slot) {
    const uint32_t last_use = table.Meta(head, slot).last_use;
    keys[found] = uint64_t{last_use} << 32 | slot;
    found += last_use < in_use;
  }
  CHECK_LE(count, found);
  std::nth_element(keys, keys + count - 1, keys + found);
  std::sort(keys, keys + count);
}

// First the rows that have a slot, so that none of them becomes a victim; returns the others.
uint32_t MarkHits(const ResolveArgs& args, const ResolveArgs::Item& item, uint32_t head,
                  Resolved* resolved) {
  const uint32_t* rows = item.rows + head * args.stride;
  uint32_t* slots = item.slots + head * args.stride;
  for (uint32_t i = 0; i < item.count; ++i) {
    slots[i] = item.table.SlotOf(head, rows[i]);
    if (slots[i] == kNotHot) continue;
    SlotMeta& meta = item.table.Meta(head, slots[i]);
    resolved->hits += 1;
    resolved->useful += meta.last_use == item.useful_stamp;
    meta.last_use = item.hit_stamp;
  }
  return item.count - resolved->hits;
}

void ResolveHead(const ResolveArgs& args, const ResolveArgs::Item& item, uint32_t head,
                 uint64_t* keys) {
  const SlotTable& table = item.table;
  CHECK_LE(item.count, table.slots);
  if (item.clear) Clear(table, head);
  Resolved resolved;
  const uint32_t absent = MarkHits(args, item, head, &resolved);
  if (absent > 0) {
    FindVictims(table, head, std::min(item.hit_stamp, item.miss_stamp), absent, keys);
  }
  const uint32_t* rows = item.rows + head * args.stride;
  uint32_t* slots = item.slots + head * args.stride;
  RowMove* misses = item.misses + head * item.miss_stride;
  for (uint32_t i = 0, next = 0; next < absent; ++i) {
    if (slots[i] != kNotHot) continue;
    const uint32_t slot = static_cast<uint32_t>(keys[next++]);
    SlotMeta& meta = table.Meta(head, slot);
    if (meta.token != kNoToken) table.SlotOf(head, meta.token) = kNotHot;
    meta = {.token = rows[i], .last_use = item.miss_stamp};
    if (item.map_misses) table.SlotOf(head, rows[i]) = static_cast<uint16_t>(slot);
    slots[i] = slot;
    if (rows[i] == item.current) {
      resolved.hits += 1;
    } else {
      misses[resolved.misses++] = {item.by_place ? i : rows[i], slot};
    }
  }
  item.resolved[head] = resolved;
}

}  // namespace

void Resolve(const ResolveArgs& args, Context& context) {
  const auto tasks = static_cast<uint32_t>(args.items.size()) * args.kv_heads;
  context.pool.Run(tasks, [&](uint32_t task, unsigned thread) {
    const ResolveArgs::Item& item = args.items[task / args.kv_heads];
    float* memory = context.scratch.Get(thread, size_t{2} * item.table.slots);
    ResolveHead(args, item, task % args.kv_heads, reinterpret_cast<uint64_t*>(memory));
  });
}

void CopyRows(const CopyRowsArgs& args, Context& context) {
  struct Task {
    const CopyRowsArgs::Item* item;
    uint32_t head;
    uint32_t first;
  };
  std::vector<Task> tasks;
  for (const CopyRowsArgs::Item& item : args.items) {
    for (uint32_t head = 0; head < args.kv_heads; ++head) {
      for (uint32_t i = 0; i < item.Rows(head); i += kCopyRows) {
        tasks.push_back({&item, head, i});
      }
    }
  }
  context.pool.Run(static_cast<uint32_t>(tasks.size()), [&](uint32_t t, unsigned) {
    const Task& task = tasks[t];
    const uint32_t end = std::min(task.first + kCopyRows, task.item->Rows(task.head));
    for (uint32_t i = task.first; i < end; ++i) plain::CopyRow(*task.item, task.head, i);
  });
}

}  // namespace sparsekv::cpu
