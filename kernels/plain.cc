#include "kernels/plain.h"

#include <atomic>
#include <cstring>

#include "base/check.h"

namespace sparsekv::plain {
namespace {

void ForgetRow(const SlotTable& table, uint32_t kv_head, const RowMove& move) {
  SlotMeta& meta = table.Meta(kv_head, move.slot);
  CHECK_EQ(meta.token, move.token);
  table.SlotOf(kv_head, move.token) = kNotHot;
  meta = SlotMeta{};
}

}  // namespace

void CopyRow(const CopyRowsArgs::Item& item, uint32_t kv_head, uint32_t i) {
  const RowMove move = item.Move(kv_head, i);
  std::memcpy(item.to.Row(kv_head, move.slot), item.from.Row(kv_head, move.token),
              item.from.layout->row_bytes());
}

void LandRows(const AttendArgs& args) {
  for (const AttendArgs::Item& item : args.items) {
    if (!item.offloaded) continue;
    if (CopyProgress* ahead = item.offloaded->ahead) {
      std::atomic_ref<uint32_t>(ahead->stop).store(1);
    }
    if (item.offloaded->landing.blocks == nullptr) continue;
    for (uint32_t head = 0; head < args.kv_heads; ++head) {
      const uint32_t* list = item.selection + head * args.selection_stride;
      for (uint32_t i = 0; i < item.count; ++i) {
        if (item.offloaded->SlotOf(head, list[i]) != kNotHot) continue;
        std::memcpy(item.offloaded->landing.Row(head, i), item.rows.Row(head, list[i]),
                    item.rows.layout->row_bytes());
      }
    }
  }
}

void Forget(const ForgetArgs& args) {
  for (const ForgetArgs::Item& item : args.items) {
    for (const RowMove& move : item.moves) ForgetRow(item.table, item.kv_head, move);
  }
}

void CopyAhead(const CopyAheadArgs& args) {
  const std::atomic_ref<uint32_t> stop(args.progress->stop), slices(args.progress->slices);
  uint64_t at = 0;  // in the list
  for (const CopyAheadArgs::Item& item : args.items) {
    CHECK_EQ(item.rows.first_rows, 0u);
    for (uint32_t head = 0; head < args.kv_heads; ++head) {
      for (uint32_t i = 0; i < item.rows.Rows(head); ++i) {
        if (at++ % kCopySliceRows == 0) {
          if (stop.load() != 0) return;
          slices.fetch_add(1);
        }
        CopyRow(item.rows, head, i);
        const RowMove move = item.rows.Move(head, i);
        item.table.SlotOf(head, move.token) = static_cast<uint16_t>(move.slot);
      }
    }
  }
}

void ForgetRest(const ForgetRestArgs& args) {
  const uint64_t begun = uint64_t{args.progress->slices} * kCopySliceRows;
  uint64_t at = 0;  // in the list
  for (const ForgetRestArgs::Item& item : args.items) {
    for (uint32_t head = 0; head < args.kv_heads; ++head) {
      const RowMove* moves = item.moves + head * item.stride;
      for (uint32_t i = 0; i < item.resolved[head].misses; ++i) {
        if (at++ >= begun) ForgetRow(item.table, head, moves[i]);
      }
    }
  }
}

void Overlap(const OverlapArgs& args) {
  for (const OverlapArgs::Item& item : args.items) {
    for (uint32_t head = 0; head < args.kv_heads; ++head) {
      const uint32_t* a = item.a + head * item.a_stride;
      const uint32_t* b = item.b + head * item.b_stride;
      uint32_t common = 0;
      for (uint32_t i = 0, j = 0; i < item.a_count && j < item.b_count;) {
        common += a[i] == b[j];
        const bool next_a = a[i] <= b[j], next_b = b[j] <= a[i];
        i += next_a;
        j += next_b;
      }
      item.common[head] = common;
    }
  }
}

}  // namespace sparsekv::plain
