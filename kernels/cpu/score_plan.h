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

// How far ahead of its use a page is fetched.
inline constexpr uint32_t kFetchPages = 8;

// Fetches a KV head's labels of the page that comes kFetchPages after another one, while that is
// scored: line by line, evenly over the work, as what is asked for in one burst keeps the loads
// behind it waiting.
class LabelFetch {
 public:
  LabelFetch() = default;  // nothing
  LabelFetch(const ScoreJob& job, uint32_t page, uint32_t kv_head) {
    if (page + kFetchPages >= job.pages()) return;
    const LabelTable& labels = job.item->labels;
    next_ = labels.Head(kv_head, page + kFetchPages);
    end_ = next_ + labels.layout->head_stride();
  }

  // So many bytes of the page have been read since the last call.
  void Bytes(size_t bytes) {
    for (due_ += bytes; due_ >= kLine && next_ < end_; due_ -= kLine, next_ += kLine) {
      __builtin_prefetch(next_, 0, 2);
    }
  }

 private:
  static constexpr size_t kLine = 64;

  const std::byte* next_ = nullptr;
  const std::byte* end_ = nullptr;
  size_t due_ = 0;
};

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
