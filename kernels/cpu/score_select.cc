#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/score_select.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "base/check.h"
#include "kernels/cpu/competition.h"
#include "kernels/cpu/highest-inl.h"
#include "kernels/cpu/operations.h"
#include "kernels/cpu/score_plan.h"

// Scoring and selecting in one pass over the labels: a few pages are scored into the L1 cache, and
// what may be among the highest is kept at once. Scores go nowhere else. A task has a part of the
// pages, so what it keeps are candidates, among which the selection is found when all are done.
HWY_BEFORE_NAMESPACE();
namespace sparsekv::cpu::HWY_NAMESPACE {
namespace {

// Pages of a sample, an eighth of all at most, and from how many on it is worth its cost.
constexpr uint32_t kSamplePages = 32;
constexpr uint32_t kMinSamplePages = 16;
constexpr size_t kSampleTokens = size_t{kSamplePages} * kBlockTokens;
// Tokens that are scored before their scores are looked at.
constexpr size_t kStepTokens = size_t{LabelFetch::kPages} * kBlockTokens;

size_t SampleScratch() { return 2 * kSampleTokens + kSlack; }

// A KV head's bound, from the scores of pages that lie evenly among those that compete.
void SampleBound(const SelectJob& job, uint32_t head, float* scratch) {
  const Competition& among = job.among;
  const uint32_t first = (among.begin + kBlockTokens - 1) / kBlockTokens;
  const uint32_t pages = HWY_MAX(among.end / kBlockTokens, first) - first;
  const uint32_t count = HWY_MIN(pages / 8, kSamplePages);
  job.bounds[head] = __builtin_nanf("");
  if (count < kMinSamplePages) return;
  std::byte* sampled[kSamplePages];
  for (uint32_t i = 0; i < count; ++i) {
    const uint64_t page = first + uint64_t{i} * pages / count;
    sampled[i] = job.score.item->labels.pages[page];
  }
  ScoreLabelsArgs::Item item = *job.score.item;
  item.tokens = count * kBlockTokens;
  item.first = 0;
  item.labels.pages = sampled;
  ScoreJob sample = job.score;
  sample.item = &item;
  sample.first_head = head;
  sample.end_head = head + 1;
  sample.fetch_end = count;
  sample.scores = scratch;
  job.pass(sample, 0, count);
  job.bounds[head] = SampledBound(scratch, item.tokens, among.want, among.end - among.begin,
                                  reinterpret_cast<uint32_t*>(scratch + kSampleTokens));
}

size_t PartCapacity(const SelectJob& job, uint32_t part) {
  return Highest::Capacity(job.among.want, job.PartFirst(part + 1) - job.PartFirst(part));
}

size_t CandidateFloats(const SelectJob& job, uint32_t part) {
  return Highest::Floats(PartCapacity(job, part));
}

size_t CollectScratch(const SelectJob& job, uint32_t part) {
  return SelectJob::kMaxHeads * kStepTokens + Highest::KeyRoom(PartCapacity(job, part));
}

// The candidates of a part, of the KV heads [first, end); `memory`: CandidateFloats per head.
void Collect(const SelectJob& all, uint32_t part, uint32_t first, uint32_t end, float* memory,
             float* scratch) {
  const size_t capacity = PartCapacity(all, part);
  auto* keys = reinterpret_cast<uint32_t*>(scratch + SelectJob::kMaxHeads * kStepTokens);
  Highest highest[SelectJob::kMaxHeads];
  for (uint32_t head = first; head < end; ++head, memory += Highest::Floats(capacity)) {
    highest[head - first] = Highest(all.among.want, capacity, all.bounds[head], memory, keys);
  }
  ScoreJob job = all.score;
  job.first_head = first;
  job.end_head = end;
  job.scores = scratch;
  job.score_stride = kStepTokens;
  job.fetch_end = job.PartBegin(part + 1, all.parts);
  for (uint32_t page = job.PartBegin(part, all.parts); page < job.fetch_end;) {
    job.origin = page;
    const uint32_t next = HWY_MIN(page + LabelFetch::kPages, job.fetch_end);
    all.pass(job, page, next);
    const uint32_t origin = page * kBlockTokens;
    const uint32_t begin = HWY_MAX(origin, all.among.begin);
    const uint32_t last = HWY_MIN(next * kBlockTokens, all.among.end);
    for (uint32_t h = 0; h < end - first && begin < last; ++h) {
      highest[h].Add(scratch + h * kStepTokens + (begin - origin), last - begin, begin);
    }
    page = next;
  }
  for (uint32_t head = first; head < end; ++head) {
    all.candidates[part * all.kv_heads() + head] = highest[head - first].Found();
  }
}

size_t MergeScratch(const SelectJob& job, uint32_t head) {
  size_t count = kSlack;
  for (uint32_t part = 0; part < job.parts; ++part) {
    count += job.candidates[part * job.kv_heads() + head].count;
  }
  return count;
}

// A KV head's selection from the candidates of all parts. False: its bound was too high.
bool Merge(const SelectJob& job, uint32_t head, float* scratch) {
  uint32_t* const selection = job.Selection(head);
  uint32_t* const to = job.among.WriteAlways(selection);
  if (job.among.want > 0 &&
      !WriteHighest(job.candidates + head, job.parts, job.kv_heads(), job.among.want,
                    reinterpret_cast<uint32_t*>(scratch), to)) {
    return false;
  }
  job.among.WriteRecent(selection);
  return true;
}

}  // namespace
}  // namespace sparsekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sparsekv::cpu {
namespace {

HWY_EXPORT(SampleScratch);
HWY_EXPORT(SampleBound);
HWY_EXPORT(CandidateFloats);
HWY_EXPORT(CollectScratch);
HWY_EXPORT(Collect);
HWY_EXPORT(MergeScratch);
HWY_EXPORT(Merge);

// Part and KV heads of a job, and where their candidates lie.
struct CollectTask {
  const SelectJob* job = nullptr;
  uint32_t part = 0;
  uint32_t first_head = 0, end_head = 0;
  size_t at = 0;  // floats
};

void CollectAll(std::span<const SelectJob> jobs, Context& context) {
  std::vector<CollectTask> tasks;
  size_t floats = 0;
  for (const SelectJob& job : jobs) {
    for (uint32_t part = 0; job.among.want > 0 && part < job.parts; ++part) {
      const size_t head_floats = HWY_DYNAMIC_DISPATCH(CandidateFloats)(job, part);
      for (uint32_t head = 0; head < job.kv_heads(); head += SelectJob::kMaxHeads) {
        const uint32_t end = std::min(head + SelectJob::kMaxHeads, job.kv_heads());
        tasks.push_back({&job, part, head, end, floats});
        floats += (end - head) * head_floats;
      }
    }
  }
  float* memory = context.shared.Get(1, floats);
  context.pool.Run(static_cast<uint32_t>(tasks.size()), [&](uint32_t i, unsigned thread) {
    const CollectTask& task = tasks[i];
    float* scratch =
        context.scratch.Get(thread, HWY_DYNAMIC_DISPATCH(CollectScratch)(*task.job, task.part));
    HWY_DYNAMIC_DISPATCH(Collect)
    (*task.job, task.part, task.first_head, task.end_head, memory + task.at, scratch);
  });
}

bool MergeHead(const SelectJob& job, uint32_t head, float* scratch) {
  return HWY_DYNAMIC_DISPATCH(Merge)(job, head, scratch);
}

// The KV heads that are not done, as their bounds were too high, again and without: all of them in
// one pass.
void SelectAgain(const SelectJob& job, std::span<const uint8_t> done, Context& context) {
  if (std::all_of(done.begin(), done.end(), [](uint8_t is) { return is != 0; })) return;
  for (uint32_t head = 0; head < job.kv_heads(); ++head) {
    if (done[head] == 0) job.bounds[head] = __builtin_nanf("");
  }
  CollectAll({&job, 1}, context);
  for (uint32_t head = 0; head < job.kv_heads(); ++head) {
    if (done[head] != 0) continue;
    const size_t floats = HWY_DYNAMIC_DISPATCH(MergeScratch)(job, head);
    CHECK(MergeHead(job, head, context.scratch.Get(0, floats)));
  }
}

// A few items, all KV heads of each.
void SelectItems(std::span<const SelectJob> jobs, Context& context) {
  const uint32_t kv_heads = jobs[0].kv_heads();
  const auto tasks = static_cast<uint32_t>(jobs.size() * kv_heads);
  context.pool.Run(tasks, [&](uint32_t i, unsigned thread) {
    if (jobs[i / kv_heads].among.want == 0) return;
    float* scratch = context.scratch.Get(thread, HWY_DYNAMIC_DISPATCH(SampleScratch)());
    HWY_DYNAMIC_DISPATCH(SampleBound)(jobs[i / kv_heads], i % kv_heads, scratch);
  });
  CollectAll(jobs, context);
  std::vector<uint8_t> done(tasks);
  context.pool.Run(tasks, [&](uint32_t i, unsigned thread) {
    const SelectJob& job = jobs[i / kv_heads];
    const size_t floats = HWY_DYNAMIC_DISPATCH(MergeScratch)(job, i % kv_heads);
    done[i] = MergeHead(job, i % kv_heads, context.scratch.Get(thread, floats));
  });
  for (size_t i = 0; i < jobs.size(); ++i) {
    SelectAgain(jobs[i], std::span(done).subspan(i * kv_heads, kv_heads), context);
  }
}

}  // namespace

bool ScoreSelect(const ScoreLabelsArgs& score, const SelectArgs& select, Context& context) {
  CHECK_EQ(score.items.size(), select.items.size());
  CHECK_EQ(score.kv_heads, select.kv_heads);
  // A mass needs the sum over all tokens before the first score.
  if (score.pooling == Pooling::kSoftmaxMass) return false;
  const std::vector<ScoreJob> jobs = MakeScoreJobs(score, context);
  const unsigned threads = context.pool.threads();
  for (size_t at = 0; at < jobs.size(); at += threads) {  // so many items at once
    const size_t end = std::min<size_t>(at + threads, jobs.size());
    size_t chunks = 0, parts = 0;
    for (size_t i = at; i < end; ++i) chunks += jobs[i].chunks();
    std::vector<SelectJob> some;
    for (size_t i = at; i < end; ++i) {
      const SelectArgs::Item& item = select.items[i];
      CHECK_EQ(item.tokens, jobs[i].item->tokens);
      CHECK_EQ(item.first, jobs[i].item->first);
      CHECK_LE(AlwaysSetSize(item.tokens, item.first), item.count);
      CHECK_LE(item.count, item.tokens - item.first);
      some.push_back({.score = jobs[i],
                      .among = Competition(item),
                      .pass = PassesOf(score).score,
                      .parts = PartsOf(jobs[i], chunks, threads),
                      .selection = item.selection,
                      .stride = select.selection_stride});
      parts += some.back().parts;
    }
    std::vector<float> bounds(some.size() * score.kv_heads);
    std::vector<Candidates> candidates(parts * score.kv_heads);
    float* bound = bounds.data();
    Candidates* candidate = candidates.data();
    for (SelectJob& job : some) {
      job.bounds = std::exchange(bound, bound + score.kv_heads);
      job.candidates = std::exchange(candidate, candidate + size_t{job.parts} * score.kv_heads);
    }
    SelectItems(some, context);
  }
  return true;
}

}  // namespace sparsekv::cpu
#endif  // HWY_ONCE
