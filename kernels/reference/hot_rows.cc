#include <algorithm>
#include <vector>

#include "base/check.h"
#include "kernels/plain.h"
#include "kernels/reference/operations.h"

namespace sparsekv::reference {

namespace {

void Clear(const SlotTable& table, uint32_t head) {
  for (uint32_t slot = 0; slot < table.slots; ++slot) {
    SlotMeta& meta = table.Meta(head, slot);
    if (meta.token != kNoToken) table.SlotOf(head, meta.token) = kNotHot;
    meta = SlotMeta{};
  }
}

// The slot that was used longest ago and is not in use by this step.
uint32_t Victim(const SlotTable& table, uint32_t head, uint32_t in_use) {
  uint32_t victim = kNoToken;
  for (uint32_t slot = 0; slot < table.slots; ++slot) {
    const uint32_t last_use = table.Meta(head, slot).last_use;
    if (last_use >= in_use) continue;
    if (victim == kNoToken || last_use < table.Meta(head, victim).last_use) victim = slot;
  }
  CHECK(victim != kNoToken);
  return victim;
}

void ResolveHead(const ResolveArgs& args, const ResolveArgs::Item& item, uint32_t head) {
  const SlotTable& table = item.table;
  CHECK_LE(item.count, table.slots);
  if (item.clear) Clear(table, head);
  const uint32_t* rows = item.rows + head * args.stride;
  uint32_t* slots = item.slots + head * args.stride;
  RowMove* misses = item.misses + head * item.miss_stride;
  Resolved resolved;
  for (uint32_t i = 0; i < item.count; ++i) {
    slots[i] = table.SlotOf(head, rows[i]);
    if (slots[i] == kNotHot) continue;
    SlotMeta& meta = table.Meta(head, slots[i]);
    CHECK_EQ(meta.token, rows[i]);
    resolved.hits += 1;
    resolved.useful += meta.last_use == item.useful_stamp;
    meta.last_use = item.hit_stamp;
  }
  for (uint32_t i = 0; i < item.count; ++i) {
    if (slots[i] != kNotHot) continue;
    const uint32_t slot = Victim(table, head, std::min(item.hit_stamp, item.miss_stamp));
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

void Resolve(const ResolveArgs& args) {
  for (const ResolveArgs::Item& item : args.items) {
    for (uint32_t head = 0; head < args.kv_heads; ++head) ResolveHead(args, item, head);
  }
}

void CopyRows(const CopyRowsArgs& args) {
  for (const CopyRowsArgs::Item& item : args.items) {
    for (uint32_t head = 0; head < args.kv_heads; ++head) {
      for (uint32_t i = 0; i < item.Rows(head); ++i) plain::CopyRow(item, head, i);
    }
  }
}

}  // namespace sparsekv::reference
