#include <vector>

#include "base/check.h"
#include "kernels/cuda/begin_kernel.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/select_threshold.cuh"
#include "kernels/cuda/select_write.cuh"

// Exact selection. Bound by the scores' bytes: 4 in per token and KV head, read once.
//
// A team of CTAs takes the row of a KV head of an item: a cluster of 8 where the device has
// clusters, else one CTA. Each takes an equal part of the row and keeps it in shared memory as
// keys, unsigned numbers of the scores' order (what finds no room there is read again when needed).
// The last selected key is found by radix: up to three rounds of 11, 11 and 10 bits, each a
// histogram in the CTA and a sum over the team. It is over when a whole bin is selected, which is
// after two rounds for most rows. Then a bit per token says what is selected, and a running sum
// over the bits' words where its index goes, so indices come in order and ties fall to the lower
// one. No atomics but on integers: the result depends on the scores alone.
namespace sparsekv::cuda {
namespace {

using namespace selection;

struct SelectItem {
  const float* scores;
  uint32_t* selection;
  uint64_t score_stride;
  uint64_t selection_stride;
  uint32_t tokens;
  uint32_t count;
};

// The selection bits of a tile of the CTA's part. Begins and ends with a barrier.
template <typename Team>
__device__ void MarkTile(const Row& row, uint32_t tile, Threshold threshold,
                         Shared<Team::kSize>& shared) {
  const auto* cached = reinterpret_cast<const uint32_t*>(shared.keys);
  const auto* scores = reinterpret_cast<const uint32_t*>(row.base);
  __syncthreads();
#pragma unroll 4
  for (uint32_t word = WarpId(); word < kTileWords; word += Team::kWarps) {
    const uint32_t i = (tile * kTileWords + word) * kWordBits + LaneId();
    if (i - LaneId() >= row.vectors * kVector) break;
    const uint32_t token = row.first * kVector + i;
    uint32_t key = kNoKey;
    if (i < kCachedVectors * kVector) {
      if (i < row.vectors * kVector) key = cached[i];
    } else if (token >= row.skip && token < row.end) {
      key = KeyOf(__ldcg(scores + token));
    }
    const uint32_t above = __ballot_sync(kWholeWarp, key >= threshold.from);
    if (LaneId() == 0) shared.bits.above[word] = above;
    if (threshold.equals > 0) {
      const uint32_t equal = __ballot_sync(kWholeWarp, key == threshold.from - 1);
      if (LaneId() == 0) shared.bits.equal[word] = equal;
    }
  }
  __syncthreads();
}

// The selection bits of the words of one thread: neighbours.
template <typename Team>
struct Words {
  static constexpr uint32_t kWords = kTileWords / Team::kThreads;
  uint32_t above[kWords];
  uint32_t equal[kWords];

  __device__ Words(const Row& row, uint32_t tile, Threshold threshold,
                   const Shared<Team::kSize>& shared) {
#pragma unroll
    for (uint32_t j = 0; j < kWords; ++j) {
      const uint32_t word = threadIdx.x * kWords + j;
      const bool marked = (tile * kTileWords + word) * kWordBits < row.vectors * kVector;
      above[j] = marked ? shared.bits.above[word] : 0;
      equal[j] = marked && threshold.equals > 0 ? shared.bits.equal[word] : 0;
    }
  }
  __device__ uint64_t Count(uint32_t j) const { return Pack(__popc(above[j]), __popc(equal[j])); }
  __device__ uint64_t Count() const {
    uint64_t sum = 0;
#pragma unroll
    for (uint32_t j = 0; j < kWords; ++j) sum += Count(j);
    return sum;
  }
};

// Writes what is selected of a tile. `before`: of the tokens before this thread's.
template <typename Team>
__device__ void WriteTile(const Row& row, uint32_t tile, Threshold threshold,
                          const Words<Team>& words, uint64_t before, uint32_t* to) {
#pragma unroll
  for (uint32_t j = 0; j < Words<Team>::kWords; ++j) {
    uint32_t bits = words.above[j];
    if (Equal(before) < threshold.equals) {
      bits |= LowestBits(words.equal[j], threshold.equals - Equal(before));
    }
    const uint32_t word = tile * kTileWords + threadIdx.x * Words<Team>::kWords + j;
    WriteWords(bits, row.FirstToken() + row.first * kVector + word * kWordBits,
               Above(before) + min(Equal(before), threshold.equals), to);
    before += words.Count(j);
  }
}

template <typename Team>
__device__ void WriteSelected(const Row& row, Threshold threshold, uint32_t* to,
                              Shared<Team::kSize>& shared) {
  constexpr uint32_t kTileVectors = kTileWords * kWordBits / kVector;
  const uint32_t tiles = (row.vectors + kTileVectors - 1) / kTileVectors;
  Running<uint64_t> of_tile{};
  uint64_t of_part = 0;
  for (uint32_t tile = 0; tile < tiles; ++tile) {
    MarkTile<Team>(row, tile, threshold, shared);
    of_tile = RunningSum(Words<Team>(row, tile, threshold, shared).Count(), shared.warp_totals);
    of_part += of_tile.all;
  }
  if (threadIdx.x < Team::kSize) Team::Of(shared.counts, threadIdx.x)[Team::Rank()] = of_part;
  Team::Sync();
  uint64_t before = 0;
  for (uint32_t rank = 0; rank < Team::Rank(); ++rank) before += shared.counts[rank];
  for (uint32_t tile = 0; tile < tiles; ++tile) {
    if (tiles > 1) MarkTile<Team>(row, tile, threshold, shared);
    const Words<Team> words(row, tile, threshold, shared);
    if (tiles > 1) of_tile = RunningSum(words.Count(), shared.warp_totals);
    WriteTile<Team>(row, tile, threshold, words, before + of_tile.before, to);
    before += of_tile.all;
  }
}

template <typename Team>
__device__ void SelectRow(const SelectItem* items, uint32_t kv_heads) {
  extern __shared__ uint4 dynamic_shared[];
  auto& shared = *reinterpret_cast<Shared<Team::kSize>*>(dynamic_shared);
  const SelectItem item = items[Team::Row() / kv_heads];
  const uint32_t kv_head = Team::Row() % kv_heads;
  uint32_t* selection = item.selection + kv_head * item.selection_stride;
  if (item.count == item.tokens) {
    const uint32_t first = Team::Rank() * Team::kThreads + threadIdx.x;
    for (uint32_t i = first; i < item.count; i += Team::kSize * Team::kThreads) selection[i] = i;
    return;
  }
  // There are more tokens than in the always-set.
  if (Team::Rank() == 0) {
    constexpr uint32_t kLast = kRecentTokens + 1;
    static_assert(kSinkTokens <= Team::kThreads && kLast <= Team::kThreads);
    const uint32_t i = threadIdx.x;
    if (i < kSinkTokens) selection[i] = i;
    if (i < kLast) selection[item.count - kLast + i] = item.tokens - kLast + i;
  }
  const uint32_t want = item.count - AlwaysSetSize(item.tokens);
  if (want == 0) return;
  const Row row = CutRow<Team>(item.scores + kv_head * item.score_stride, item.tokens);
  const Threshold threshold = FindThreshold<Team>(row, want, shared);
  WriteSelected<Team>(row, threshold, selection + kSinkTokens, shared);
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define SPARSEKV_CLUSTER __cluster_dims__(kClusterCtas, 1, 1)
#else
#define SPARSEKV_CLUSTER
#endif

__global__ void SPARSEKV_CLUSTER __launch_bounds__(kClusterThreads, kClusterCtasPerMultiprocessor)
    SelectWithClusters(const SelectItem* items, uint32_t kv_heads) {
  BeginKernel();
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  SelectRow<Team<kClusterCtas>>(items, kv_heads);
#endif
}

__global__ void __launch_bounds__(kLoneThreads, 1)
    SelectWithLoneCtas(const SelectItem* items, uint32_t kv_heads) {
  BeginKernel();
  SelectRow<Team<1>>(items, kv_heads);
}

}  // namespace

void Select(const SelectArgs& args, Tape& tape) {
  if (args.items.empty()) return;
  std::vector<SelectItem> items;
  for (const SelectArgs::Item& item : args.items) {
    CHECK_LE(AlwaysSetSize(item.tokens), item.count);
    CHECK_LE(item.count, item.tokens);
    items.push_back({item.scores, item.selection, args.score_stride, args.selection_stride,
                     item.tokens, item.count});
  }
  const SelectItem* list = tape.Params(items);
  const auto rows = static_cast<uint32_t>(items.size()) * args.kv_heads;
  if (tape.properties().major >= 9) {
    // Without being asked the driver may give the kernel too little shared memory for three CTAs.
    static const cudaError_t asked =
        cudaFuncSetAttribute(SelectWithClusters, cudaFuncAttributePreferredSharedMemoryCarveout,
                             cudaSharedmemCarveoutMaxShared);
    CUDA_CHECK(asked);
    tape.Launch(SelectWithClusters, dim3(rows * kClusterCtas), dim3(kClusterThreads),
                sizeof(Shared<kClusterCtas>), list, args.kv_heads);
  } else {
    tape.Launch(SelectWithLoneCtas, dim3(rows), dim3(kLoneThreads), sizeof(Shared<1>), list,
                args.kv_heads);
  }
}

}  // namespace sparsekv::cuda
