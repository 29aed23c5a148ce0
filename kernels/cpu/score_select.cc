#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/score_select.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <vector>

#include "base/check.h"
#include "kernels/cpu/competition.h"
#include "kernels/cpu/highest-inl.h"
#include "kernels/cpu/operations.h"
#include "kernels/cpu/score_plan.h"

// Scoring and selecting in one pass over the labels: a few pages are scored into the L1 cache, and
// what may be among the highest is kept at once. Scores go nowhere else.
HWY_BEFORE_NAMESPACE();
namespace sparsekv::cpu::HWY_NAMESPACE {
namespace {

// Pages of a sample, an eighth of all at most, and from how many on it is worth its cost.
constexpr uint32_t kSamplePages = 128;
constexpr uint32_t kMinSamplePages = 16;
constexpr size_t kSampleTokens = size_t{kSamplePages} * kBlockTokens;
constexpr size_t kChunkTokens = size_t{kTaskPages} * kBlockTokens;

// Where the scratch of a slice lies.
struct Memory {
  float* highest = nullptr;  // [heads], Highest::Floats each
  uint32_t* keys = nullptr;
  float* scores = nullptr;  // [heads, kChunkTokens], or a sample's [heads, kSampleTokens]

  static size_t Keys(uint32_t want) { return HWY_MAX(Highest::KeyRoom(want), kSampleTokens); }
  static size_t Floats(uint32_t heads, uint32_t want) {
    return heads * (Highest::Floats(want) + kSampleTokens) + Keys(want) + kSlack;
  }
  Memory(uint32_t heads, uint32_t want, float* memory)
      : highest(memory),
        keys(reinterpret_cast<uint32_t*>(memory + heads * Highest::Floats(want))),
        scores(memory + heads * Highest::Floats(want) + Keys(want) + kSlack) {}
};

// bounds[head - first_head] from the scores of pages that lie evenly among those that compete.
void SampleBounds(const SelectSlice& slice, const Memory& memory, float* bounds) {
  const ScoreJob& job = slice.job;
  const Competition& among = slice.among;
  const uint32_t heads = job.end_head - job.first_head;
  for (uint32_t h = 0; h < heads; ++h) bounds[h] = __builtin_nanf("");
  const uint32_t first = (among.begin + kBlockTokens - 1) / kBlockTokens;
  const uint32_t pages = HWY_MAX(among.end / kBlockTokens, first) - first;
  const uint32_t count = HWY_MIN(pages / 8, kSamplePages);
  if (count < kMinSamplePages) return;
  std::byte* sampled[kSamplePages];
  for (uint32_t i = 0; i < count; ++i) {
    const uint64_t page = first + uint64_t{i} * pages / count;
    sampled[i] = job.item->labels.pages[page];
  }
  ScoreLabelsArgs::Item item = *job.item;
  item.tokens = count * kBlockTokens;
  item.first = 0;
  item.labels.pages = sampled;
  ScoreJob sample = job;
  sample.item = &item;
  sample.scores = memory.scores;
  sample.score_stride = kSampleTokens;
  for (uint32_t chunk = 0; chunk < sample.chunks(); ++chunk) slice.score(sample, chunk);
  for (uint32_t h = 0; h < heads; ++h) {
    bounds[h] = SampledBound(memory.scores + h * kSampleTokens, item.tokens, among.want,
                             among.end - among.begin, memory.keys);
  }
}

// Heads [first, end) of the slice, whose bounds begin at `bounds`. Returns the first head whose
// bound was too high; those before it are done.
uint32_t SelectHeads(const SelectSlice& slice, const Memory& memory, uint32_t first, uint32_t end,
                     const float* bounds) {
  const Competition& among = slice.among;
  ScoreJob job = slice.job;
  job.first_head = first;
  job.end_head = end;
  job.scores = memory.scores;
  job.score_stride = kChunkTokens;
  Highest highest[SelectSlice::kMaxHeads];
  for (uint32_t h = 0; h < end - first; ++h) {
    highest[h] = Highest(among.want, bounds[h], memory.highest + h * Highest::Floats(among.want),
                         memory.keys);
  }
  for (uint32_t chunk = 0; chunk < job.chunks(); ++chunk) {
    job.origin = job.ChunkBegin(chunk);
    slice.score(job, chunk);
    const uint32_t origin = job.origin * kBlockTokens;
    const uint32_t begin = HWY_MAX(origin, among.begin);
    const uint32_t last = HWY_MIN(job.ChunkEnd(chunk) * kBlockTokens, among.end);
    for (uint32_t h = 0; h < end - first && begin < last; ++h) {
      highest[h].Add(memory.scores + h * kChunkTokens + (begin - origin), last - begin, begin);
    }
  }
  for (uint32_t head = first; head < end; ++head) {
    if (!highest[head - first].Write(slice.Selection(head) + (among.begin - among.first))) {
      return head;
    }
  }
  return end;
}

size_t SliceScratch(const SelectSlice& slice) {
  return Memory::Floats(slice.job.end_head - slice.job.first_head, slice.among.want);
}

void RunSlice(const SelectSlice& slice, float* scratch) {
  const uint32_t first = slice.job.first_head, end = slice.job.end_head;
  if (slice.among.want > 0) {
    const Memory memory(end - first, slice.among.want, scratch);
    float bounds[SelectSlice::kMaxHeads];
    SampleBounds(slice, memory, bounds);
    for (uint32_t head = first; head < end;) {
      head = SelectHeads(slice, memory, head, end, bounds + (head - first));
      if (head < end) bounds[head - first] = __builtin_nanf("");
    }
  }
  for (uint32_t head = first; head < end; ++head) {
    slice.among.WriteAlways(slice.Selection(head));
    slice.among.WriteRecent(slice.Selection(head));
  }
}

}  // namespace
}  // namespace sparsekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sparsekv::cpu {

HWY_EXPORT(RunSlice);
HWY_EXPORT(SliceScratch);

bool ScoreSelect(const ScoreLabelsArgs& score, const SelectArgs& select, Context& context) {
  CHECK_EQ(score.items.size(), select.items.size());
  CHECK_EQ(score.kv_heads, select.kv_heads);
  const unsigned threads = context.pool.threads();
  const size_t lists = score.items.size() * score.kv_heads;
  // A mass needs the sum over all tokens before the first score. And a list is one thread's work.
  if (score.pooling == Pooling::kSoftmaxMass || lists < threads) return false;
  const std::vector<ScoreJob> jobs = MakeScoreJobs(score, context);
  const auto heads =
      static_cast<uint32_t>(std::clamp<size_t>(lists / (2 * threads), 1, SelectSlice::kMaxHeads));
  std::vector<SelectSlice> slices;
  for (size_t i = 0; i < jobs.size(); ++i) {
    const SelectArgs::Item& item = select.items[i];
    CHECK_EQ(item.tokens, jobs[i].item->tokens);
    CHECK_EQ(item.first, jobs[i].item->first);
    CHECK_LE(AlwaysSetSize(item.tokens, item.first), item.count);
    CHECK_LE(item.count, item.tokens - item.first);
    for (uint32_t head = 0; head < select.kv_heads; head += heads) {
      slices.push_back({.job = jobs[i],
                        .among = Competition(item),
                        .score = PassesOf(score).score,
                        .selection = item.selection,
                        .stride = select.selection_stride});
      slices.back().job.first_head = head;
      slices.back().job.end_head = std::min(head + heads, select.kv_heads);
    }
  }
  const auto run = HWY_DYNAMIC_DISPATCH(RunSlice);
  const auto floats = HWY_DYNAMIC_DISPATCH(SliceScratch);
  context.pool.Run(static_cast<uint32_t>(slices.size()), [&](uint32_t i, unsigned thread) {
    run(slices[i], context.scratch.Get(thread, floats(slices[i])));
  });
  return true;
}

}  // namespace sparsekv::cpu
#endif  // HWY_ONCE
