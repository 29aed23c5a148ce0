#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/cpu/competition.h"
#include "kernels/cpu/operations.h"
#include "kernels/labels.h"

namespace sparsekv::cpu {

// Pages of a task, all KV heads of each, and of a partial normaliser of kSoftmaxMass. The labels of
// a page's heads lie side by side, so a task reads stretches as long as the layout allows.
inline constexpr uint32_t kTaskPages = 16;

// One item and some of its KV heads: what all its tasks share.
struct ScoreJob {
  const ScoreLabelsArgs* args = nullptr;
  const ScoreLabelsArgs::Item* item = nullptr;
  uint32_t first_head = 0, end_head = 0;
  float* scores = nullptr;  // [end_head - first_head, score_stride], from page `origin` on
  size_t score_stride = 0;
  uint32_t origin = 0;
  float* query = nullptr;       // [kv_heads, group, channels], scaled for the pooling
  float* partials = nullptr;    // kSoftmaxMass: [chunks, kv_heads, group, 2] = maximum, sum
  float* normaliser = nullptr;  // kSoftmaxMass: [kv_heads, group, 2] = maximum, 1 / sum of all
  uint32_t* codes = nullptr;    // coded labels: [kv_heads, group, code_words], CodeQueries

  uint32_t channels() const { return item->labels.layout->channels; }
  // Pages [first_page, pages) hold what the query may see.
  uint32_t first_page() const { return item->first / kBlockTokens; }
  uint32_t pages() const { return (item->tokens + kBlockTokens - 1) / kBlockTokens; }
  uint32_t chunks() const { return (pages() - first_page() + kTaskPages - 1) / kTaskPages; }
  uint32_t ChunkBegin(uint32_t chunk) const { return first_page() + chunk * kTaskPages; }
  uint32_t ChunkEnd(uint32_t chunk) const {
    const uint32_t end = ChunkBegin(chunk + 1);
    return end < pages() ? end : pages();
  }
  // Of a query head that is coded: for each word of a label what its pairs of codes are multiplied
  // with, then unit and sum.
  uint32_t code_words() const {
    const LabelLayout& layout = *item->labels.layout;
    return layout.coded() ? layout.words() * (16 / CodeBits(layout.format)) + 2 : 0;
  }
  size_t heads() const { return size_t{args->kv_heads} * args->group; }
  const float* Query(uint32_t kv_head) const {
    return query + size_t{kv_head} * args->group * channels();
  }
  // Where the page's scores go.
  float* Scores(uint32_t kv_head, uint32_t page) const {
    return scores + (kv_head - first_head) * score_stride + size_t{page - origin} * kBlockTokens;
  }
  // The tokens of the page that the query may see: [Skipped, Valid) of it.
  uint32_t Skipped(uint32_t page) const {
    return page == first_page() ? item->first % kBlockTokens : 0;
  }
  uint32_t Valid(uint32_t page) const {
    const uint32_t left = item->tokens - page * kBlockTokens;
    return left < kBlockTokens ? left : kBlockTokens;
  }
};

// Pages that are fetched side by side, while as many before them are scored: pages lie apart, and
// memory serves lines of several at once faster than one page after the other.
inline constexpr uint32_t kFetchPages = 8;
static_assert(kTaskPages % kFetchPages == 0);

// The share of (page, kv_head) in fetching the kFetchPages pages after its own.
inline void FetchAhead(const ScoreJob& job, uint32_t page, uint32_t kv_head) {
  constexpr size_t kLine = 64;
  const LabelTable& labels = job.item->labels;
  const uint32_t first = (page / kFetchPages + 1) * kFetchPages;
  const uint32_t end = first + kFetchPages < job.pages() ? first + kFetchPages : job.pages();
  const size_t heads = job.end_head - job.first_head;
  const size_t step = page % kFetchPages * heads + (kv_head - job.first_head);
  const size_t lines = labels.layout->head_stride() / kLine;  // times heads: of a page
  for (size_t i = step * lines / kFetchPages; i < (step + 1) * lines / kFetchPages; ++i) {
    for (uint32_t ahead = first; ahead < end; ++ahead) {
      __builtin_prefetch(labels.Head(job.first_head, ahead) + i * kLine, 0, 2);
    }
  }
}

// What is done with the pages of a chunk: kSoftmaxMass's first pass, then the scores.
struct ScorePasses {
  void (*normalise)(const ScoreJob& job, uint32_t chunk);
  void (*score)(const ScoreJob& job, uint32_t chunk);
};
ScorePasses PassesOf(const ScoreLabelsArgs& args);

// A job per item, all its KV heads, with its queries gathered. Their memory is context.shared's.
std::vector<ScoreJob> MakeScoreJobs(const ScoreLabelsArgs& args, Context& context);

// Some KV heads of an item that are scored and selected by one task.
struct SelectSlice {
  static constexpr uint32_t kMaxHeads = 4;

  ScoreJob job;
  Competition among;
  void (*score)(const ScoreJob& job, uint32_t chunk);
  uint32_t* selection = nullptr;  // [kv_heads, stride]
  size_t stride = 0;

  uint32_t* Selection(uint32_t kv_head) const { return selection + kv_head * stride; }
};

// Of labels that are codes (score_codes.cc).
ScorePasses CodedPasses();
void CodeQueries(const ScoreJob& job);  // job.query into job.codes

}  // namespace sparsekv::cpu
