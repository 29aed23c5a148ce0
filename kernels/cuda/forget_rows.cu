#include <vector>

#include "kernels/copy_ahead.h"
#include "kernels/cuda/begin_kernel.cuh"
#include "kernels/cuda/cta.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/tables.cuh"

// Slots of rows that were to be brought and were not.
namespace sparsekv::cuda {
namespace {

constexpr uint32_t kThreads = 256;
constexpr uint32_t kWarps = kThreads / kWarpThreads;

__device__ void ForgetRow(const SlotsView& table, uint32_t head, RowMove move) {
  table.SlotOf(head, move.token) = kNotHot;
  table.Meta(head, move.slot) = SlotMeta{};
}

struct ForgetRestItem {
  SlotsView table;
  const RowMove* moves;
  uint64_t stride;
  const Resolved* resolved;
};

// A CTA per (KV head, item). Bytes: some 20 per row that is forgotten.
__global__ void __launch_bounds__(kThreads)
    ForgetRestKernel(const ForgetRestItem* items, const CopyProgress* const* progress) {
  BeginKernel();
  __shared__ uint32_t totals[kWarps];
  const uint32_t kv_heads = gridDim.x, head = blockIdx.x;
  const uint32_t list = blockIdx.y * kv_heads + head;
  uint32_t of_thread = 0;
  for (uint32_t l = threadIdx.x; l < list; l += kThreads) {
    of_thread += items[l / kv_heads].resolved[l % kv_heads].misses;
  }
  const uint64_t before = RunningSum(of_thread, totals).all;
  const uint64_t begun = uint64_t{(*progress)->slices} * kCopySliceRows;
  const ForgetRestItem& item = items[blockIdx.y];
  const uint32_t misses = item.resolved[head].misses;
  for (uint64_t i = (begun > before ? begun - before : 0) + threadIdx.x; i < misses;
       i += kThreads) {
    ForgetRow(item.table, head, item.moves[head * item.stride + i]);
  }
}

struct ForgetItem {
  SlotsView table;
  const RowMove* moves;  // in the step's parameters
  uint32_t count;
  uint32_t kv_head;
};

// A CTA per item.
__global__ void __launch_bounds__(kThreads) ForgetKernel(const ForgetItem* items) {
  BeginKernel();
  const ForgetItem& item = items[blockIdx.x];
  for (uint32_t i = threadIdx.x; i < item.count; i += kThreads) {
    ForgetRow(item.table, item.kv_head, item.moves[i]);
  }
}

}  // namespace

void ForgetRest(const ForgetRestArgs& args, Tape& tape) {
  if (args.items.empty() || args.kv_heads == 0) return;
  std::vector<ForgetRestItem> items;
  for (const ForgetRestArgs::Item& item : args.items) {
    items.push_back({ViewOf(item.table), item.moves, item.stride, item.resolved});
  }
  const dim3 grid(args.kv_heads, static_cast<uint32_t>(items.size()));
  tape.Launch(ForgetRestKernel, grid, dim3(kThreads), 0, tape.Params(items),
              tape.Param(args.progress));
}

void Forget(const ForgetArgs& args, Tape& tape) {
  if (args.items.empty()) return;
  std::vector<ForgetItem> items;
  for (const ForgetArgs::Item& item : args.items) {
    items.push_back({ViewOf(item.table), tape.Params(item.moves),
                     static_cast<uint32_t>(item.moves.size()), item.kv_head});
  }
  tape.Launch(ForgetKernel, dim3(static_cast<uint32_t>(items.size())), dim3(kThreads), 0,
              tape.Params(items));
}

}  // namespace sparsekv::cuda
