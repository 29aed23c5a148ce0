#include <algorithm>
#include <type_traits>
#include <vector>

#include "base/check.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/score_lane.cuh"
#include "kernels/cuda/score_part.cuh"
#include "kernels/cuda/score_select_codes.h"
#include "kernels/cuda/score_select_kernel.cuh"

namespace sparsekv::cuda {
namespace {

using namespace fused;

// The keys of bfloat16 labels. kChannels divides the number of channels; kWhole: is all of them,
// and kHeads is no less than the group.
template <uint32_t kHeads_, uint32_t kChannels, bool kWhole>
struct PlainScorer {
  static constexpr uint32_t kHeads = kHeads_;
  // Neighbouring tokens of a lane: registers for heads x tokens sums, and 8 channels of labels.
  static constexpr uint32_t kTokens = kHeads < kMostHeads ? 4 : 2;
  static constexpr uint32_t kStride = 1;
  // Of neighbouring tokens in one channel.
  using Labels = std::conditional_t<kTokens == 4, uint2, uint32_t>;

  __device__ PlainScorer(const Job& job, const Part& part, Shared& shared) {
    scoring::GatherQueries<kHeads, kThreads>(job, part, shared.queries);
  }

  // The labels of the unit that is scored next, of all channels at once.
  struct Ahead {
    Labels labels[kChannels];
  };

  // The lane's tokens in the page. They are read once. The compiler may not move this to where the
  // labels are used.
  __device__ static Labels Load(const std::byte* page, uint32_t channel) {
    const auto* from = reinterpret_cast<const Labels*>(page + channel * scoring::kChannelBytes) +
                       LaneId() % Unit<kTokens>::kPageLanes;
    Labels labels;
    if constexpr (kTokens == 4) {
      asm volatile("ld.global.cs.v2.u32 {%0, %1}, [%2];"
                   : "=r"(labels.x), "=r"(labels.y)
                   : "l"(from));
    } else {
      asm volatile("ld.global.cs.u32 %0, [%1];" : "=r"(labels) : "l"(from));
    }
    return labels;
  }

  __device__ void Begin(const std::byte* const* pages, Ahead& ahead) const {
    if constexpr (kWhole) {
#pragma unroll
      for (uint32_t i = 0; i < kChannels; ++i) {
        ahead.labels[i] = Load(Unit<kTokens>::Page(pages), i);
      }
    }
  }

  __device__ void Score(const Job& job, const std::byte* const* pages, const std::byte* const* next,
                        Ahead& ahead, const Shared& shared, Pooled<kTokens>& pooled) const {
    const auto* query = reinterpret_cast<const scoring::HeadValues<kHeads>*>(shared.queries);
    if constexpr (kWhole) {
      const std::byte* next_page = Unit<kTokens>::Page(next);
      float sums[kHeads][kTokens] = {};
#pragma unroll
      for (uint32_t i = 0; i < kChannels; ++i) {
        float wide[kTokens];
        scoring::Widen(ahead.labels[i], wide);
        ahead.labels[i] = Load(next_page, i);
        scoring::AddChannel<kHeads>(wide, query[i], sums);
      }
      pooled.template Add<kHeads>(job, 0, sums);
    } else {
      ScoreInBlocks(job, Unit<kTokens>::Page(pages), query, pooled);
    }
  }

  // Of more query heads or channels than registers are for.
  __device__ void ScoreInBlocks(const Job& job, const std::byte* page,
                                const scoring::HeadValues<kHeads>* query,
                                Pooled<kTokens>& pooled) const {
#pragma unroll 1
    for (uint32_t block = 0; block < job.group; block += kHeads) {
      float sums[kHeads][kTokens] = {};
#pragma unroll 1
      for (uint32_t c = 0; c < job.channels; c += kChannels, query += kChannels) {
        Labels labels[kChannels];
#pragma unroll
        for (uint32_t i = 0; i < kChannels; ++i) labels[i] = Load(page, c + i);
#pragma unroll
        for (uint32_t i = 0; i < kChannels; ++i) {
          float wide[kTokens];
          scoring::Widen(labels[i], wide);
          scoring::AddChannel<kHeads>(wide, query[i], sums);
        }
      }
      pooled.template Add<kHeads>(job, block, sums);
    }
  }
};

template <uint32_t kHeads>
uint32_t LaunchHeads(const Job& job, const Work& work, Tape& tape) {
  const uint32_t heads = (job.group + kHeads - 1) / kHeads * kHeads;
  if (heads * job.channels > kMostQueryValues) return 0;
  if (job.group <= kHeads) {
    if (job.channels == 8) return Launch<PlainScorer<kHeads, 8, true>>(job, work, tape);
    if (job.channels == 4) return Launch<PlainScorer<kHeads, 4, true>>(job, work, tape);
  }
  // Channels are taken by as many as divide them: 8, 4, else one by one, which is slow.
  if (job.channels % 8 == 0) return Launch<PlainScorer<kHeads, 8, false>>(job, work, tape);
  if (job.channels % 4 == 0) return Launch<PlainScorer<kHeads, 4, false>>(job, work, tape);
  return Launch<PlainScorer<kHeads, 1, false>>(job, work, tape);
}

}  // namespace

bool ScoreSelect(const ScoreLabelsArgs& score, const SelectArgs& select, Tape& tape,
                 SelectedRows* selected) {
  if (score.pooling == Pooling::kSoftmaxMass || tape.properties().major < 9) return false;
  if (sizeof(Shared) + kMaxGroup * sizeof(float) > tape.properties().sharedMemPerBlockOptin) {
    return false;
  }
  if (score.items.empty()) return true;
  CHECK_EQ(score.items.size(), select.items.size());
  CHECK_EQ(score.kv_heads, select.kv_heads);
  CHECK_EQ(score.score_stride, select.score_stride);
  CHECK_LE(score.group, kMaxGroup);
  const LabelLayout& layout = *score.items.front().labels.layout;
  std::vector<Item> items;
  Work work = {
      .rows = static_cast<uint32_t>(score.items.size()) * score.kv_heads, .tokens = 0, .want = 0};
  for (size_t i = 0; i < score.items.size(); ++i) {
    const ScoreLabelsArgs::Item& scored = score.items[i];
    const SelectArgs::Item& chosen = select.items[i];
    CHECK_EQ(scored.labels.layout->kv_heads, score.kv_heads);
    CHECK_EQ(scored.labels.layout->channels, layout.channels);
    CHECK(scored.labels.layout->format == layout.format);
    CHECK_EQ(scored.tokens, chosen.tokens);
    CHECK(scored.scores == chosen.scores);
    CHECK_LE(AlwaysSetSize(chosen.tokens), chosen.count);
    CHECK_LE(chosen.count, chosen.tokens);
    items.push_back({ViewOf(scored.labels), chosen.selection, select.selection_stride, scored.query,
                     scored.tokens, chosen.count});
    if (!items.back().Chooses()) continue;
    work.tokens = std::max(work.tokens, scored.tokens);
    work.want = std::max(work.want, chosen.count - AlwaysSetSize(chosen.tokens));
  }
  *selected = {.kv_heads = score.kv_heads,
               .stride = select.selection_stride,
               .selections = {},
               .lane = tape.lane()};
  for (const SelectArgs::Item& item : select.items) {
    selected->selections.push_back(item.selection);
  }
  // The step's parameters come anew before every step.
  const std::vector<uint32_t> zeros(RowsDone::Words(work.rows));
  selected->done.words = const_cast<uint32_t*>(tape.Params(zeros));
  const Job job = {.items = tape.Params(items),
                   .q = score.q,
                   .channel_list = score.channels,
                   .rows_done = selected->done,
                   .kv_heads = score.kv_heads,
                   .group = score.group,
                   .head_dim = score.head_dim,
                   .channels = layout.channels,
                   .words = layout.words(),
                   .pooling = score.pooling,
                   .bits = static_cast<uint8_t>(CodeBits(layout.format)),
                   .zeros = {}};
  selected->done.ctas = [&] {
    if (layout.coded()) return LaunchCoded(job, work, tape);
    if (job.group == 1) return LaunchHeads<1>(job, work, tape);
    if (job.group <= 4) return LaunchHeads<4>(job, work, tape);
    return LaunchHeads<kMostHeads>(job, work, tape);
  }();
  selected->noted = tape.noted();
  return selected->done.ctas > 0;
}

}  // namespace sparsekv::cuda
