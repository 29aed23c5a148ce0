#include <type_traits>
#include <vector>

#include "base/check.h"
#include "kernels/cuda/begin_kernel.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/score_lane.cuh"
#include "kernels/cuda/score_part.cuh"
#include "kernels/cuda/score_select_find.cuh"
#include "kernels/cuda/score_select_row.cuh"

// Scores of label pages and the selection among them, in one kernel. Bound by the labels' bytes:
// 2 x channels in per token and KV head; scores go nowhere.
//
// A cluster of 8 CTAs takes the row of a KV head of an item, each CTA an equal part of it. A warp's
// unit of work is 32 lanes of 4 neighbouring tokens (2 where 8 query heads share a label). What a
// lane scores it keeps in shared memory as a key (select_threshold.cuh) and counts in the first
// histogram. What is loaded next is on its way while a unit is scored: its labels to registers, as
// soon as a channel is widened, and the unit's after that to L2. Then the cluster finds the last
// selected key (score_select_find.cuh), and every warp writes what it selects of 1,024 tokens at a
// time: a bit per token, a running sum over the bits' words. While it does so memory would rest, so
// it asks L2 to bring what the next row on its multiprocessor will read first.
//
// Keys beyond what shared memory holds are spilled to the item's scores.
namespace sparsekv::cuda {
namespace {

using namespace fused;
using selection::kNoKey;

// Query heads that share a label in registers.
constexpr uint32_t kMostHeads = 8;
// Neighbouring tokens of a lane: registers for heads x tokens sums, and 8 channels of labels.
template <uint32_t kHeads>
constexpr uint32_t kLaneTokens = kHeads < kMostHeads ? 4 : 2;
// Of a CTA, ahead of the row that comes next.
[[maybe_unused]] constexpr uint32_t kAheadBytes = 96 << 10;
// CTAs of a row where there are few rows.
constexpr uint32_t kWideClusterCtas = 16;
// Rounds of units that labels are asked for ahead of the one in work.
[[maybe_unused]] constexpr uint32_t kRoundsAhead = 2;
// Pages whose labels are asked for before the query is there.
[[maybe_unused]] constexpr uint32_t kFirstPages = 128;

template <uint32_t kTokens>
struct Unit {
  static constexpr uint32_t kUnitTokens = kWarpThreads * kTokens;
  static constexpr uint32_t kPageLanes = kBlockTokens / kTokens;
  static constexpr uint32_t kPages = kUnitTokens / kBlockTokens;
  static_assert(kCutTokens % kUnitTokens == 0 && kCachedTokens % kUnitTokens == 0);
  // Of neighbouring tokens in one channel.
  using Labels = std::conditional_t<kTokens == 4, uint2, uint32_t>;
  using Keys = std::conditional_t<kTokens == 4, uint4, uint2>;

  // The lane's page of the unit, in channel 0.
  __device__ static const std::byte* Page(uint32_t unit, const Shared& shared) {
    return shared.pages[unit * kPages + LaneId() / kPageLanes];
  }
  // The lane's tokens in it. They are read once.
  __device__ static Labels Load(const std::byte* page, uint32_t channel) {
    const auto* labels = reinterpret_cast<const Labels*>(page + channel * scoring::kChannelBytes);
    return __ldcs(labels + LaneId() % kPageLanes);
  }
  __device__ static void Ask(const std::byte* page, uint32_t channels) {
#pragma unroll 1
    for (uint32_t c = LaneId() % kPageLanes; c < channels; c += kPageLanes) {
      BringToL2(page + c * scoring::kChannelBytes);
    }
  }

  // Keeps the lane's keys, of tokens from `first` on, and counts them by their upper bits.
  __device__ static void Keep(const Part& part, uint32_t first, uint32_t (&keys)[kTokens],
                              Shared& shared) {
    if (first < kCutTokens || first + kCutTokens >= part.tokens) {
#pragma unroll
      for (uint32_t t = 0; t < kTokens; ++t) keys[t] = Competes(part, first + t) ? keys[t] : kNoKey;
    }
    Keys vector;
    if constexpr (kTokens == 4) {
      vector = {keys[0], keys[1], keys[2], keys[3]};
    } else {
      vector = {keys[0], keys[1]};
    }
    if (first < kCachedTokens) {
      reinterpret_cast<Keys*>(shared.keys)[first / kTokens] = vector;
    } else if (first < part.end) {
      *reinterpret_cast<Keys*>(part.spilled + first) = vector;
    }
#pragma unroll
    for (uint32_t t = 0; t < kTokens; ++t) {
      atomicAdd(&shared.histograms[0][keys[t] >> (32 - kBinBits)], 1u);
    }
  }
};

// The scores of a lane's tokens, pooled over the heads so far.
template <uint32_t kTokens>
struct Pooled {
  float scores[kTokens];
  float first[kTokens];  // of the first head

  template <uint32_t kHeads>
  __device__ void Add(const Job& job, uint32_t first_head, const float (&sums)[kHeads][kTokens]) {
    const bool max = job.pooling == Pooling::kMaxNormalised;
#pragma unroll
    for (uint32_t t = 0; t < kTokens; ++t) {
      if (first_head == 0) {
        scores[t] = first[t] = sums[0][t];
      } else {
        scores[t] = max ? fmaxf(scores[t], sums[0][t]) : __fadd_rn(scores[t], sums[0][t]);
      }
    }
#pragma unroll
    for (uint32_t h = 1; h < kHeads; ++h) {
      if (first_head + h >= job.group) continue;
#pragma unroll
      for (uint32_t t = 0; t < kTokens; ++t) {
        scores[t] = max ? fmaxf(scores[t], sums[h][t]) : __fadd_rn(scores[t], sums[h][t]);
      }
    }
  }

  // As of std::max over the heads: NaN where the first head's score is, and only there.
  __device__ void ToKeys(const Job& job, uint32_t (&keys)[kTokens]) const {
    const bool max = job.pooling == Pooling::kMaxNormalised;
#pragma unroll
    for (uint32_t t = 0; t < kTokens; ++t) {
      const float decides = max ? first[t] : scores[t];
      keys[t] = decides != decides ? selection::kNanKey : selection::KeyOfNumber(scores[t]);
    }
  }
};

// The keys of the lane's tokens in the page.
template <uint32_t kHeads, uint32_t kChannels, bool kWhole>
__device__ void ScoreUnit(const Job& job, const std::byte* page, const float* queries,
                          uint32_t (&keys)[kLaneTokens<kHeads>]) {
  constexpr uint32_t kTokens = kLaneTokens<kHeads>;
  using U = Unit<kTokens>;
  const uint32_t channels = kWhole ? kChannels : job.channels;
  const auto* query = reinterpret_cast<const scoring::HeadValues<kHeads>*>(queries);
  Pooled<kTokens> pooled;
#pragma unroll 1
  for (uint32_t block = 0; block < (kWhole ? 1 : job.group); block += kHeads) {
    float sums[kHeads][kTokens] = {};
#pragma unroll 1
    for (uint32_t c = 0; c < channels; c += kChannels, query += kChannels) {
      typename U::Labels labels[kChannels];
#pragma unroll
      for (uint32_t i = 0; i < kChannels; ++i) labels[i] = U::Load(page, c + i);
#pragma unroll
      for (uint32_t i = 0; i < kChannels; ++i) {
        float wide[kTokens];
        scoring::Widen(labels[i], wide);
        scoring::AddChannel<kHeads>(wide, query[i], sums);
      }
    }
    pooled.template Add<kHeads>(job, block, sums);
  }
  pooled.ToKeys(job, keys);
}

// The keys of the part and their first histogram, which is clear. Complete after a barrier. The
// first kCachedTokens' pages have been brought.
template <uint32_t kHeads, uint32_t kChannels, bool kWhole>
__device__ void ScorePart(const Job& job, const Part& part, Shared& shared) {
  using U = Unit<kLaneTokens<kHeads>>;
  constexpr uint32_t kAsked = kRoundsAhead * kWarps * U::kPages;
  const uint32_t channels = kWhole ? kChannels : job.channels;
  scoring::GatherQueries<kHeads, kThreads>(job, part, shared.queries);
#pragma unroll 1
  for (uint32_t from = 0; from < part.tokens; from += kCachedTokens) {
    if (from > 0) {
      __syncthreads();
      BringPages(job, part, from, kAsked, shared);
      __syncthreads();
    }
    const uint32_t units = min(part.tokens - from, kCachedTokens) / U::kUnitTokens;
#pragma unroll 1
    for (uint32_t unit = WarpId(); unit < units; unit += kWarps) {
      uint32_t keys[kLaneTokens<kHeads>];
      const uint32_t ahead = unit + kRoundsAhead * kWarps;
      if (ahead < units) U::Ask(U::Page(ahead, shared), channels);
      ScoreUnit<kHeads, kChannels, kWhole>(job, U::Page(unit, shared), shared.queries, keys);
      U::Keep(part, from + unit * U::kUnitTokens + LaneId() * kLaneTokens<kHeads>, keys, shared);
    }
  }
}

// Whether scores decide anything.
__device__ inline bool Chooses(const Item& item) {
  return item.count > AlwaysSetSize(item.tokens) && item.count < item.tokens;
}

// Has L2 bring the first labels of the same part of the row that comes when this one is done. By
// all warps but one.
template <typename Team>
__device__ void AskForNextRow(const Job& job) {
  const uint32_t row = Team::Row() + job.rows_at_once;
  if (row >= job.rows) return;
  const Item& item = job.items[row / job.kv_heads];
  if (!Chooses(item)) return;
  const Part part = CutRow<Team>(job, item, row % job.kv_heads);
  const uint32_t pages = (TokensInUse(part) + kBlockTokens - 1) / kBlockTokens;
  const uint32_t lines = min(pages * job.channels, kAheadBytes / scoring::kChannelBytes);
#pragma unroll 1
  for (uint32_t i = threadIdx.x - kWarpThreads; i < lines; i += kThreads - kWarpThreads) {
    BringToL2(LabelsOfPage(part, i / job.channels) + i % job.channels * scoring::kChannelBytes);
  }
}

// The selection bits of 32 words of 32 keys, a word per lane; key_of(i): that of the i-th key.
template <typename KeyOf>
__device__ void Mark(const Selected& selected, const KeyOf& key_of, uint32_t& above,
                     uint32_t& equal) {
#pragma unroll 8
  for (uint32_t word = 0; word < kWarpThreads; ++word) {
    const uint32_t key = key_of(word * kWarpThreads + LaneId());
    const uint32_t is_above = __ballot_sync(kWholeWarp, key >= selected.from);
    if (LaneId() == word) above = is_above;
    if (selected.equals > 0) {
      const uint32_t is_equal = __ballot_sync(kWholeWarp, key == selected.from - 1);
      if (LaneId() == word) equal = is_equal;
    }
  }
}

// Writes the part's selected tokens, in order.
[[maybe_unused]] __device__ void WriteSelected(const Part& part, const Selected& selected,
                                               Shared& shared) {
  constexpr uint32_t kWarpTokens = kWarpThreads * kWarpThreads;
  const auto* keys = reinterpret_cast<const uint32_t*>(shared.keys);
  uint64_t before = selected.before;
#pragma unroll 1
  for (uint32_t tile = 0; tile < part.tokens; tile += kWarps * kWarpTokens) {
    const uint32_t first = tile + WarpId() * kWarpTokens;
    uint32_t above = 0, equal = 0;
    if (first + kWarpTokens <= min(part.tokens, kCachedTokens)) {
      Mark(
          selected, [&](uint32_t i) { return keys[first + i]; }, above, equal);
    } else if (first < part.tokens) {
      Mark(
          selected, [&](uint32_t i) { return KeyOfToken(part, shared, first + i); }, above, equal);
    }
    const Running<uint64_t> sum =
        RunningSum(selection::Pack(__popc(above), __popc(equal)), shared.warp_totals);
    const uint32_t equal_before = selection::Equal(before + sum.before);
    const uint32_t at = selection::Above(before + sum.before) + min(equal_before, selected.equals);
    if (equal_before < selected.equals) {
      above |= selection::LowestBits(equal, selected.equals - equal_before);
    }
    selection::WriteWords(above, part.first + first + LaneId() * kWarpThreads, at, part.to);
    before += sum.all;
  }
}

// The tokens that are selected whatever their scores; true when that is all.
template <typename Team>
__device__ bool WriteAlwaysSet(const Item& item, uint32_t kv_head) {
  uint32_t* to = item.selection + kv_head * item.selection_stride;
  if (item.count == item.tokens) {
    const uint32_t first = Team::Rank() * kThreads + threadIdx.x;
    for (uint32_t i = first; i < item.count; i += Team::kSize * kThreads) to[i] = i;
    return true;
  }
  // There are more tokens than in the always-set.
  constexpr uint32_t kLast = kRecentTokens + 1;
  static_assert(kSinkTokens <= kThreads && kLast <= kThreads);
  if (Team::Rank() == 0) {
    const uint32_t i = threadIdx.x;
    if (i < kSinkTokens) to[i] = i;
    if (i < kLast) to[item.count - kLast + i] = item.tokens - kLast + i;
  }
  return item.count == kSinkTokens + kLast;
}

template <typename Team, uint32_t kHeads, uint32_t kChannels, bool kWhole>
__device__ void ScoreAndSelectRow(const Job& job) {
  extern __shared__ uint4 dynamic_shared[];
  auto& shared = *reinterpret_cast<Shared*>(dynamic_shared);
  const Item& item = job.items[Team::Row() / job.kv_heads];
  const uint32_t kv_head = Team::Row() % job.kv_heads;
  const Part& part = shared.part;
  // All labels but the newest are there already.
  if (Chooses(item)) {
    if (threadIdx.x == 0) shared.part = CutRow<Team>(job, item, kv_head);
    Clear(shared.histograms[0]);
    Clear(shared.histograms[1]);
    __syncthreads();
    if (part.tokens > 0) BringPages(job, part, 0, kFirstPages, shared);
  }
  BeginKernel();
  if (WriteAlwaysSet<Team>(item, kv_head)) return;
  ArriveInCluster();
  ScorePart<kHeads, kChannels, kWhole>(job, part, shared);
  const Selected selected = FindSelected<Team>(part, shared, [&] { AskForNextRow<Team>(job); });
  WriteSelected(part, selected, shared);
  WaitForCluster();
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define SPARSEKV_CLUSTER(ctas) __cluster_dims__(ctas, 1, 1)
#else
#define SPARSEKV_CLUSTER(ctas)
#endif

// A cluster per row. kChannels divides the number of channels; kWhole: is all of them, and kHeads
// is no less than the group.
template <uint32_t kCtas, uint32_t kHeads, uint32_t kChannels, bool kWhole>
__global__ void SPARSEKV_CLUSTER(kCtas) __launch_bounds__(kThreads, kCtasPerMultiprocessor)
    ScoreSelectKernel(const Job job) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  ScoreAndSelectRow<selection::Team<kCtas>, kHeads, kChannels, kWhole>(job);
#endif
}

// Clusters of that many CTAs that the device runs at once; 0 where it has none of that size. The
// kernel is prepared for them.
template <uint32_t kCtas>
int ClustersAtOnce(void (*kernel)(Job)) {
  const auto* function = reinterpret_cast<const void*>(kernel);
  // Without being asked the driver may give the kernel too little shared memory for two CTAs.
  CUDA_CHECK(cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout,
                                  cudaSharedmemCarveoutMaxShared));
  CUDA_CHECK(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(sizeof(Shared))));
  CUDA_CHECK(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed,
                                  kCtas > 8 ? 1 : 0));
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kCtas, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(kCtas);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = sizeof(Shared);
  config.attrs = &cluster;
  config.numAttrs = 1;
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, function, &config) == cudaSuccess) return clusters;
  cudaGetLastError();
  return 0;
}

template <uint32_t kCtas, uint32_t kHeads, uint32_t kChannels, bool kWhole>
bool LaunchClusters(Job job, uint32_t least, Tape& tape) {
  const auto kernel = ScoreSelectKernel<kCtas, kHeads, kChannels, kWhole>;
  static const int at_once = ClustersAtOnce<kCtas>(kernel);
  if (at_once < static_cast<int>(least)) return false;
  job.rows_at_once = static_cast<uint32_t>(at_once);
  tape.Launch(kernel, dim3(job.rows * kCtas), dim3(kThreads), sizeof(Shared), job);
  return true;
}

template <uint32_t kHeads, uint32_t kChannels, bool kWhole>
bool Launch(const Job& job, Tape& tape) {
  // So few rows that CTAs of more than 8 for each find multiprocessors of their own.
  if constexpr (kWhole) {
    if (job.rows * kWideClusterCtas <= static_cast<uint32_t>(tape.multiprocessors()) &&
        LaunchClusters<kWideClusterCtas, kHeads, kChannels, kWhole>(job, job.rows, tape)) {
      return true;
    }
  }
  return LaunchClusters<selection::kClusterCtas, kHeads, kChannels, kWhole>(job, 1, tape);
}

template <uint32_t kHeads>
bool LaunchHeads(const Job& job, Tape& tape) {
  const uint32_t heads = (job.group + kHeads - 1) / kHeads * kHeads;
  if (heads * job.channels > kMostQueryValues) return false;
  if (job.group <= kHeads) {
    if (job.channels == 8) return Launch<kHeads, 8, true>(job, tape);
    if (job.channels == 4) return Launch<kHeads, 4, true>(job, tape);
  }
  // Channels are taken by as many as divide them: 8, 4, else one by one, which is slow.
  if (job.channels % 8 == 0) return Launch<kHeads, 8, false>(job, tape);
  if (job.channels % 4 == 0) return Launch<kHeads, 4, false>(job, tape);
  return Launch<kHeads, 1, false>(job, tape);
}

}  // namespace

bool ScoreSelect(const ScoreLabelsArgs& score, const SelectArgs& select, Tape& tape) {
  if (score.pooling == Pooling::kSoftmaxMass || tape.properties().major < 9) return false;
  if (sizeof(Shared) + kMaxGroup * sizeof(float) > tape.properties().sharedMemPerBlockOptin) {
    return false;
  }
  if (score.items.empty()) return true;
  CHECK_EQ(score.items.size(), select.items.size());
  CHECK_EQ(score.kv_heads, select.kv_heads);
  CHECK_EQ(score.score_stride, select.score_stride);
  CHECK_LE(score.group, kMaxGroup);
  const uint32_t channels = score.items.front().labels.layout->channels;
  std::vector<Item> items;
  for (size_t i = 0; i < score.items.size(); ++i) {
    const ScoreLabelsArgs::Item& scored = score.items[i];
    const SelectArgs::Item& selected = select.items[i];
    CHECK_EQ(scored.labels.layout->kv_heads, score.kv_heads);
    CHECK_EQ(scored.labels.layout->channels, channels);
    CHECK_EQ(scored.tokens, selected.tokens);
    CHECK(scored.scores == selected.scores);
    CHECK_LE(AlwaysSetSize(selected.tokens), selected.count);
    CHECK_LE(selected.count, selected.tokens);
    items.push_back({ViewOf(scored.labels), scored.scores, selected.selection, score.score_stride,
                     select.selection_stride, scored.query, scored.tokens, selected.count});
  }
  const Job job = {.items = tape.Params(items),
                   .q = score.q,
                   .channel_list = score.channels,
                   .rows = static_cast<uint32_t>(items.size()) * score.kv_heads,
                   .kv_heads = score.kv_heads,
                   .group = score.group,
                   .head_dim = score.head_dim,
                   .channels = channels,
                   .rows_at_once = 0,
                   .pooling = score.pooling,
                   .zeros = {}};
  if (job.group == 1) return LaunchHeads<1>(job, tape);
  if (job.group <= 4) return LaunchHeads<4>(job, tape);
  return LaunchHeads<kMostHeads>(job, tape);
}

}  // namespace sparsekv::cuda
