#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/cpu/competition.h"
#include "kernels/cpu/line_fetch.h"
#include "kernels/cpu/operations.h"
#include "kernels/labels.h"

namespace sparsekv::cpu {

// Pages of a partial normaliser of kSoftmaxMass; a task has whole chunks of so many.
inline constexpr uint32_t kChunkPages = 16;

// Query heads that share a label which is widened.
inline constexpr size_t kHeadsAtOnce = 4;

// One item and some of its KV heads. The labels of a page's heads lie side by side, so a task takes
// a part of the pages and of each many heads: it reads stretches as long as the layout allows.
struct ScoreJob {
  const ScoreLabelsArgs* args = nullptr;
  const ScoreLabelsArgs::Item* item = nullptr;
  uint32_t first_head = 0, end_head = 0;
  float* scores = nullptr;  // [end_head - first_head, score_stride], from page `origin` on
  size_t score_stride = 0;
  uint32_t origin = 0;
  // [kv_heads, group, channels], scaled for the pooling; but of labels that are bf16 every block of
  // up to kHeadsAtOnce query heads is [channels, heads].
  float* query = nullptr;
  float* partials = nullptr;    // kSoftmaxMass: [chunks, kv_heads, group, 2] = maximum, sum
  float* normaliser = nullptr;  // kSoftmaxMass: [kv_heads, group, 2] = maximum, 1 / sum of all
  uint32_t fetch_end = 0;       // pages before it are fetched ahead
  uint32_t* codes = nullptr;    // coded labels: [kv_heads, group, code_words], CodeQueries

  uint32_t channels() const { return item->labels.layout->channels; }
  // Pages [first_page, pages) hold what the query may see.
  uint32_t first_page() const { return item->first / kBlockTokens; }
  uint32_t pages() const { return (item->tokens + kBlockTokens - 1) / kBlockTokens; }
  uint32_t chunks() const { return (pages() - first_page() + kChunkPages - 1) / kChunkPages; }
  uint32_t ChunkBegin(uint32_t chunk) const { return first_page() + chunk * kChunkPages; }
  uint32_t ChunkEnd(uint32_t chunk) const {
    const uint32_t end = ChunkBegin(chunk + 1);
    return end < pages() ? end : pages();
  }
  // Where the first of the pages lies that the i-th of `parts` tasks has, i in [0, parts].
  uint32_t PartBegin(uint32_t part, uint32_t parts) const {
    const uint32_t begin = ChunkBegin(static_cast<uint32_t>(uint64_t{part} * chunks() / parts));
    return begin < pages() ? begin : pages();
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

// Fetches some KV heads' labels of the pages [page, page + kPages) while as many before them are
// scored. Side by side, as pages lie apart.
struct LabelFetch {
  static constexpr uint32_t kPages = 2;

  LabelFetch(const ScoreJob& job, uint32_t page, uint32_t first_head, uint32_t end_head)
      : lines(heads, 1, (end_head - first_head) * job.item->labels.layout->head_stride()) {
    for (uint32_t i = 0; i < kPages; ++i, ++page) {
      if (page >= job.fetch_end) page = job.fetch_end - 1;
      heads[i] = job.item->labels.Head(first_head, page);
    }
  }
  LabelFetch(const LabelFetch&) = delete;

  const std::byte* heads[kPages];
  LineFetch<kPages> lines;
};

using LabelLines = LineFetch<LabelFetch::kPages>;

// Calls function(page, fetch) for the pages [begin, end), where `fetch` brings those that follow.
template <typename Function>
HWY_INLINE void ForPages(const ScoreJob& job, uint32_t begin, uint32_t end, uint32_t first_head,
                         uint32_t end_head, const Function& function) {
  for (uint32_t page = begin; page < end;) {
    const uint32_t next = page + LabelFetch::kPages;
    LabelFetch fetch(job, next, first_head, end_head);
    for (; page < next && page < end; ++page) function(page, fetch.lines);
  }
}

// Into how many parts a job's pages are divided, where `chunks` are all jobs': in all, some for
// each thread, so that one that comes late or is slow takes fewer.
inline uint32_t PartsOf(const ScoreJob& job, size_t chunks, unsigned threads) {
  const size_t parts = (4 * size_t{threads} * job.chunks() + chunks - 1) / chunks;
  return static_cast<uint32_t>(parts < job.chunks() ? parts : job.chunks());
}

// What is done with pages: kSoftmaxMass's first pass with a chunk, and the scores of [begin, end).
struct ScorePasses {
  void (*normalise)(const ScoreJob& job, uint32_t chunk);
  void (*score)(const ScoreJob& job, uint32_t begin, uint32_t end);
};
ScorePasses PassesOf(const ScoreLabelsArgs& args);

// A job per item, all its KV heads, with its queries gathered. Their memory is context.shared's.
std::vector<ScoreJob> MakeScoreJobs(const ScoreLabelsArgs& args, Context& context);

// An item whose labels are scored and selected at once (score_select.cc).
struct SelectJob {
  static constexpr uint32_t kMaxHeads = 8;  // of a task

  ScoreJob score;
  Competition among;
  void (*pass)(const ScoreJob& job, uint32_t begin, uint32_t end) = nullptr;
  uint32_t parts = 1;                // of the pages
  float* bounds = nullptr;           // [kv_heads]: what is no higher almost surely loses
  Candidates* candidates = nullptr;  // [parts, kv_heads]
  uint32_t* selection = nullptr;     // [kv_heads, stride]
  size_t stride = 0;

  uint32_t kv_heads() const { return score.args->kv_heads; }
  // The tokens of a part that compete: [PartFirst(part), PartFirst(part + 1)).
  uint32_t PartFirst(uint32_t part) const {
    const uint32_t token = score.PartBegin(part, parts) * kBlockTokens;
    if (token < among.begin) return among.begin;
    return token < among.end ? token : among.end;
  }
  uint32_t* Selection(uint32_t kv_head) const { return selection + kv_head * stride; }
};

// Of labels that are codes (score_codes.cc).
ScorePasses CodedPasses();
void CodeQueries(const ScoreJob& job);  // job.query into job.codes

}  // namespace sparsekv::cpu
