#include <vector>

#include "base/check.h"
#include "kernels/copy_ahead.h"
#include "kernels/cuda/begin_kernel.cuh"
#include "kernels/cuda/copy_rows.cuh"
#include "kernels/cuda/operations.h"

// A prefetch beside the step's own work, which it must not slow down. Rows on their way over the
// link stay there for microseconds, and what a multiprocessor loads otherwise waits behind them, so
// they take another way where there is one: a warp asks for whole rows, into its shared memory, and
// has them written from there (cp.async.bulk, from 9.0 on).
namespace sparsekv::cuda {
namespace {

constexpr uint32_t kNone = 0xFFFFFFFF;

struct AheadCall {
  RowList rows;
  const SlotsView* tables;           // by item
  CopyProgress* const* progress_at;  // in the step's parameters
  uint32_t row_bytes;
  uint32_t unused;
};
static_assert(sizeof(AheadCall) == 40);  // arguments are hashed as bytes: there is no padding

// By one thread: the first of `slices` slices that are its to bring, or kNone.
__device__ uint32_t BeginSlices(CopyProgress* progress, uint32_t slices) {
  const bool stop = *reinterpret_cast<volatile uint32_t*>(&progress->stop) != 0;
  return stop ? kNone : atomicAdd(&progress->slices, slices);
}

// By a lane of a warp that has brought the row: whoever sees it named sees it whole.
__device__ void MapRow(const AheadCall& call, const Entry& entry) {
  __threadfence();
  uint16_t& slot = call.tables[entry.item].SlotOf(entry.head, entry.move.token);
  *static_cast<volatile uint16_t*>(&slot) = static_cast<uint16_t>(entry.move.slot);
}

// ---- Through registers

constexpr uint32_t kRowsPerWarp = 4;
constexpr uint32_t kSlicesAtOnce = kRowsPerWarp * kWarps / kCopySliceRows;
static_assert(kSlicesAtOnce * kCopySliceRows == kRowsPerWarp * kWarps);
constexpr uint32_t kFewCtas = 24;

// Bytes: 2 x row bytes per row, the half of it over PCIe. By few CTAs.
__global__ void __launch_bounds__(kThreads) CopyAheadKernel(AheadCall call) {
  BeginKernel();
  extern __shared__ uint32_t starts[];
  __shared__ uint32_t next;
  const uint32_t all = CountRows(call.rows, starts);
  const Units units(call.row_bytes / sizeof(uint4));
  for (;;) {
    if (threadIdx.x == 0) next = BeginSlices(*call.progress_at, kSlicesAtOnce);
    __syncthreads();
    const uint64_t first = uint64_t{next} * kCopySliceRows + WarpId() * kRowsPerWarp;
    if (uint64_t{next} * kCopySliceRows >= all) return;
    if (first < all) {
      const auto at = static_cast<uint32_t>(first);
      const uint32_t count = min(kRowsPerWarp, all - at);
      CopyWith<uint4>(call.rows, starts, units, at, count);
      __syncwarp();
      if (LaneId() < count) MapRow(call, FindEntry(call.rows, starts, at + LaneId()));
    }
    __syncthreads();
  }
}

// ---- Past them

constexpr uint32_t kBarrierBytes = 16;  // rows lie at multiples of 16 bytes
// A slice each keeps a fast link nearly busy. More of them only wait for page table entries of the
// segment, and whatever else needs one waits behind them (kernels/README.md): with 96 and 132 steps
// took 2 to 4 % longer, though less of a prefetch was cut short.
constexpr uint32_t kBulkCtas = 48;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

__device__ void InitBarrier(uint32_t barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ void ExpectBytes(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
__device__ void WaitForPhase(uint32_t barrier, uint32_t phase) {
  asm volatile(
      "{\n.reg .pred there;\nAGAIN:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 there, [%0], %1;\n"
      "@!there bra AGAIN;\n}" ::"r"(barrier),
      "r"(phase)
      : "memory");
}
__device__ void AskFor(uint32_t to, const std::byte* from, uint32_t bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}
// Returns when the bytes are seen by whoever is told of them.
__device__ void WriteBack(std::byte* to, uint32_t from, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from),
               "r"(bytes)
               : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
#endif

// The same bytes. By CTAs of one warp, which finds room beside anything.
__global__ void __launch_bounds__(kWarpThreads) CopyAheadBulkKernel(AheadCall call) {
  BeginKernel();
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) std::byte memory[];
  const uint32_t barrier = SharedAddress(memory);
  const uint32_t row = barrier + kBarrierBytes + LaneId() * call.row_bytes;
  auto* starts =
      reinterpret_cast<uint32_t*>(memory + kBarrierBytes + kCopySliceRows * call.row_bytes);
  if (LaneId() == 0) InitBarrier(barrier);
  const uint32_t all = CountRows(call.rows, starts);
  CopyProgress* progress = *call.progress_at;
  for (uint32_t phase = 0;; phase ^= 1) {
    const uint32_t slice = __shfl_sync(kWholeWarp, LaneId() == 0 ? BeginSlices(progress, 1) : 0, 0);
    if (uint64_t{slice} * kCopySliceRows >= all) return;
    const uint32_t first = slice * kCopySliceRows, count = min(kCopySliceRows, all - first);
    if (LaneId() == 0) ExpectBytes(barrier, count * call.row_bytes);
    __syncwarp();
    if (LaneId() < count) {
      const Entry entry = FindEntry(call.rows, starts, first + LaneId());
      AskFor(row, FromOf(call.rows, entry), call.row_bytes, barrier);
      WaitForPhase(barrier, phase);
      WriteBack(ToOf(call.rows, entry), row, call.row_bytes);
      MapRow(call, entry);
    }
    __syncwarp();
  }
#endif
}

void Launch(const Copies& copies, const AheadCall& call, Tape& tape) {
  CHECK(copies.wide);
  const auto most = static_cast<uint32_t>(tape.multiprocessors());
  if (tape.properties().major < 9) {
    return tape.Launch(CopyAheadKernel, dim3(std::min(kFewCtas, most)), dim3(kThreads),
                       copies.starts_bytes, call);
  }
  const size_t bytes = kBarrierBytes + kCopySliceRows * copies.row_bytes + copies.starts_bytes;
  tape.Launch(CopyAheadBulkKernel, dim3(std::min(kBulkCtas, most)), dim3(kWarpThreads), bytes,
              call);
}

}  // namespace

void CopyAhead(const CopyAheadArgs& args, Tape& tape) {
  if (args.items.empty() || args.kv_heads == 0) return;
  std::vector<CopyRowsArgs::Item> rows;
  std::vector<SlotsView> tables;
  for (const CopyAheadArgs::Item& item : args.items) {
    CHECK_EQ(item.rows.first_rows, 0u);
    rows.push_back(item.rows);
    tables.push_back(ViewOf(item.table));
  }
  const Copies copies = PutCopies(rows, args.kv_heads, tape);
  AheadCall call{};
  call.rows = copies.rows;
  call.tables = tape.Params(tables);
  call.progress_at = tape.Param(args.progress);
  call.row_bytes = copies.row_bytes;
  Launch(copies, call, tape);
}

}  // namespace sparsekv::cuda
