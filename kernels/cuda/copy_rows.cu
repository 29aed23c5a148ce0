#include <algorithm>

#include "kernels/cuda/begin_kernel.cuh"
#include "kernels/cuda/copy_rows.cuh"
#include "kernels/cuda/copy_times.cuh"
#include "kernels/cuda/operations.h"

// Rows from the segment, which lies behind PCIe, or from where they landed, into slots. A read
// takes one to two microseconds over the link, so some 100 KiB must be on their way at any time:
// every lane issues kInFlight loads before it stores the first.
namespace sparsekv::cuda {
namespace {

// Bytes: 2 x row bytes per row, the half of it over PCIe where rows come from the segment. Warps
// take `batch` rows at a time, in turn over all multiprocessors.
template <typename Unit>
__global__ void __launch_bounds__(kThreads)
    CopyRowsKernel(RowList rows, uint32_t units_per_row, uint32_t batch, CopyTimes* const* times) {
  BeginKernel();
  extern __shared__ uint32_t starts[];
  const uint64_t begin = GlobalTime();
  const uint32_t all = CountRows(rows, starts);
  const uint32_t batches = all / batch + (all % batch > 0);
  const Units units(units_per_row);
  for (uint32_t b = WarpId() * gridDim.x + blockIdx.x; b < batches; b += gridDim.x * kWarps) {
    CopyWith<Unit>(rows, starts, units, b * batch, min(batch, all - b * batch));
  }
  if (blockIdx.x >= batches || *times == nullptr) return;  // no warp of this CTA had rows
  __syncthreads();
  if (threadIdx.x != 0) return;
  KeepEarlier(&(*times)->begin_ns, begin);
  KeepLater(&(*times)->end_ns, GlobalTime());
}

template <typename Unit>
void LaunchCopyRows(const Copies& copies, CopyTimes* times, Tape& tape) {
  const auto units = static_cast<uint32_t>(copies.row_bytes / sizeof(Unit));
  const uint32_t batch = std::clamp(kInFlight * kWarpThreads / units, 1u, kWarpThreads);
  tape.Launch(CopyRowsKernel<Unit>, dim3(static_cast<uint32_t>(tape.multiprocessors())),
              dim3(kThreads), copies.starts_bytes, copies.rows, units, batch, tape.Param(times));
}

}  // namespace

void CopyRows(const CopyRowsArgs& args, Tape& tape) {
  if (args.items.empty() || args.kv_heads == 0) return;
  const Copies copies = PutCopies(args.items, args.kv_heads, tape);
  copies.wide ? LaunchCopyRows<uint4>(copies, args.times, tape)
              : LaunchCopyRows<uint32_t>(copies, args.times, tape);
}

}  // namespace sparsekv::cuda
