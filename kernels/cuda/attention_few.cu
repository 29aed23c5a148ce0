#include <algorithm>
#include <bit>
#include <numbers>
#include <type_traits>
#include <vector>

#include "base/check.h"
#include "base/limits.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_few.cuh"
#include "kernels/cuda/attention_few_mma.cuh"
#include "kernels/cuda/attention_few_plain.cuh"

namespace sparsekv::cuda {
namespace {

// Units of one item that are wanted, over all KV heads: twice the multiprocessors of a large
// device. What is more costs time for partial results and evens out little.
constexpr uint32_t kItemUnits = 256;
constexpr uint32_t kSplitStep = 64;  // entries: a tile of each warp
// Shorter splits cost more to merge than they gain.
constexpr uint32_t kLeastSplit = 128;
// Unless there are so few entries over all KV heads that more units fill more of the device.
constexpr uint32_t kFewEntries = 8192;
constexpr uint32_t kMostCtas = 3;  // on a multiprocessor

// Depends on the model and on the list's length alone, so that results do.
uint32_t SplitLength(uint32_t entries, uint32_t kv_heads) {
  const uint32_t splits = std::clamp(kItemUnits / kv_heads, 16u, kMostSplits);
  const uint32_t even = (entries + splits - 1) / splits;
  const uint32_t length = (even + kSplitStep - 1) / kSplitStep * kSplitStep;
  const bool few = uint64_t{entries} * kv_heads <= kFewEntries;
  return std::max(length, few ? kSplitStep : kLeastSplit);
}

bool AlignedForVectors(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

FewItem ItemOf(const AttendArgs::Item& item, const AttendArgs& args, Tape& tape) {
  CHECK_EQ(item.span.tokens, 1u);
  CHECK(AlignedForVectors(item.rows.layer_base));
  FewItem few{};
  few.rows = ViewOf(item.rows);
  few.selection = item.selection;
  few.selection_stride = args.selection_stride;
  few.token = item.span.first;
  few.entries = item.selection ? item.count : item.span.position + 1;
  CHECK_GT(few.entries, 0u);
  few.split_entries = SplitLength(few.entries, args.kv_heads);
  few.splits = (few.entries + few.split_entries - 1) / few.split_entries;
  if (item.offloaded) {
    CHECK(item.selection != nullptr);
    few.offloaded = tape.Param(ViewOf(*item.offloaded));
    for (const RowTable* rows : {&item.offloaded->hot.rows, &item.offloaded->landing}) {
      if (rows->layout == nullptr) continue;
      CHECK(AlignedForVectors(rows->layer_base));
      CHECK_EQ(rows->layout->row_bytes(), item.rows.layout->row_bytes());
    }
  }
  return few;
}

// What says that the items' lists are there, where the kernel right before selects them, one for
// one, and units are easily numbered.
RowsDone DoneBefore(const AttendArgs& args, const std::vector<FewItem>& items,
                    const SelectedRows& selected, const Tape& tape) {
  if (selected.noted != tape.noted() || selected.lane != tape.lane()) return {};
  if (selected.kv_heads != args.kv_heads || selected.stride != args.selection_stride) return {};
  if (selected.selections.size() != items.size()) return {};
  for (size_t i = 0; i < items.size(); ++i) {
    if (items[i].selection != selected.selections[i]) return {};
    if (items[i].splits != items[0].splits) return {};
  }
  return selected.done;
}

// Everything but the kernel.
FewCall CallOf(const AttendArgs& args, const std::vector<FewItem>& items,
               const SelectedRows& selected, Tape& tape) {
  FewCall call{};
  call.rows_done = DoneBefore(args, items, selected, tape);
  call.q = args.q;
  call.out = args.out;
  call.item_count = static_cast<uint32_t>(items.size());
  call.kv_heads = args.kv_heads;
  call.group = args.group;
  call.head_dim = args.head_dim;
  call.passes = (args.group + kPassHeads - 1) / kPassHeads;
  call.pass_heads = std::min(args.group, kPassHeads);
  call.scale = args.scale * std::numbers::log2e_v<float>;

  std::vector<uint32_t> first_units = {0};
  for (const FewItem& item : items) {
    const uint64_t end = first_units.back() + uint64_t{item.splits} * args.kv_heads * call.passes;
    CHECK_LE(end, UINT32_MAX);
    first_units.push_back(static_cast<uint32_t>(end));
  }
  call.items = tape.Params(items);
  call.first_units = tape.Params(first_units);
  // The step's parameters come anew before every step: tickets there begin at zero.
  call.tickets =
      const_cast<uint32_t*>(tape.Params(std::vector<uint32_t>(items.size() * args.kv_heads)));
  // A power of two, so that a graph's scratch seldom moves as lists grow.
  const size_t unit_bytes = call.pass_heads * (args.head_dim + kTail) * sizeof(float);
  call.partials = reinterpret_cast<float*>(
      tape.Scratch(std::bit_ceil(size_t{first_units.back()}) * unit_bytes));
  return call;
}

template <typename... P>
void LaunchFew(void (*kernel)(P...), uint32_t threads, size_t shared_bytes, const FewCall& call,
               Tape& tape) {
  constexpr size_t kReserved = 1024;  // of every CTA, by the device
  const cudaDeviceProp& device = tape.properties();
  CHECK_LE(shared_bytes, device.sharedMemPerBlockOptin);
  const size_t fit = device.sharedMemPerMultiprocessor / (shared_bytes + kReserved);
  const auto ctas = static_cast<uint32_t>(std::clamp<size_t>(fit, 1, kMostCtas));
  tape.Launch(kernel, dim3(static_cast<uint32_t>(tape.multiprocessors()) * ctas), dim3(threads),
              shared_bytes, call);
}

template <typename T, bool kOffloaded, uint32_t kHeadDim>
void LaunchMma(const FewCall& call, Tape& tape) {
  using Shape = FewShape<kHeadDim>;
  LaunchFew(
      AttendFewMma<T, kHeadDim, kOffloaded>, Shape::kWarps * kWarp,
      Shape::kWarps * Shape::kRingBytes + ResultBytes(Shape::kWarps, call.pass_heads, kHeadDim),
      call, tape);
}

template <typename T, bool kOffloaded>
void LaunchOfType(const FewCall& call, Tape& tape) {
  if constexpr (sizeof(T) == 2) {
    switch (call.head_dim) {
      case 64:
        return LaunchMma<T, kOffloaded, 64>(call, tape);
      case 96:
        return LaunchMma<T, kOffloaded, 96>(call, tape);
      case 128:
        return LaunchMma<T, kOffloaded, 128>(call, tape);
      case 256:
        return LaunchMma<T, kOffloaded, 256>(call, tape);
    }
  }
  FewCall waits = call;  // for the whole kernel before, at its start
  waits.rows_done = {};
  LaunchFew(AttendFewPlain<T, kOffloaded>, kPlainWarps * kWarp,
            PlainSharedBytes(call.pass_heads, call.head_dim), waits, tape);
}

}  // namespace

void AttendFew(const AttendArgs& args, std::span<const AttendArgs::Item> items,
               const SelectedRows& selected, Tape& tape) {
  CHECK(args.head_dim % kUnitValues == 0 && args.head_dim <= kMaxHeadDim);
  CHECK(AlignedForVectors(args.q) && AlignedForVectors(args.out));
  for (DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    std::vector<FewItem> same;
    CopyTimes* times = nullptr;
    bool offloaded = false;
    for (const AttendArgs::Item& item : items) {
      if (item.rows.layout->dtype != dtype) continue;
      same.push_back(ItemOf(item, args, tape));
      if (!item.offloaded) continue;
      CHECK(!offloaded || item.offloaded->times == times);
      times = item.offloaded->times;
      offloaded = true;
    }
    if (same.empty()) continue;
    FewCall call = CallOf(args, same, selected, tape);
    call.times = times;
    WithType(dtype, [&](auto type) {
      using T = decltype(type);
      offloaded ? LaunchOfType<T, true>(call, tape) : LaunchOfType<T, false>(call, tape);
    });
  }
}

}  // namespace sparsekv::cuda
