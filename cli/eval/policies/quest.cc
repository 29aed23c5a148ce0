#include <algorithm>

#include "cli/eval/policies/policies.h"
#include "cli/eval/policies/scores.h"

namespace sparsekv {

namespace {

class Quest : public HeadPolicy {
 public:
  Quest(const HeadShape& shape, const QuestOptions& options) : shape_(shape), options_(options) {}

  void Begin(const PromptStatistics&) override {
    low_.clear();
    high_.clear();
    seen_ = 0;
  }

  // The page that the steps went on with is made anew.
  bool Rewind(uint32_t tokens) override {
    seen_ = std::min(seen_, tokens / options_.page * options_.page);
    return true;
  }

  void Select(const HeadStep& step, HeadSelection* selection) override {
    const uint32_t tokens = step.tokens();
    if (shape_.layer < options_.dense_layers) {
      for (uint32_t t = 0; t < tokens; ++t) selection->rows.push_back(t);
      return;
    }
    AddBounds(*step.keys);
    const uint32_t pages = Pages(tokens);
    std::vector<float> bounds(pages, 0.0f);
    for (uint32_t page = 0; page < pages; ++page) {
      for (uint32_t h = 0; h < shape_.group; ++h) {
        bounds[page] += Bound(step.q + size_t{h} * shape_.head_dim, page);
      }
    }
    // The last page, which may not be full, is always taken; of the others as many as fit.
    const uint32_t last = tokens - (pages - 1) * options_.page;
    const uint32_t others = step.rows > last ? (step.rows - last) / options_.page : 0;
    for (uint32_t page : TopRows(bounds, std::min(1 + others, pages), 0, 1)) {
      const uint32_t end = std::min(tokens, (page + 1) * options_.page);
      for (uint32_t t = page * options_.page; t < end; ++t) selection->rows.push_back(t);
    }
    selection->index_bytes = IndexBytes(tokens);
  }

  size_t IndexBytes(uint32_t tokens) const override {
    return shape_.layer < options_.dense_layers ? 0 : Pages(tokens) * 2 * shape_.key_bytes();
  }

 private:
  uint32_t Pages(uint32_t tokens) const { return (tokens + options_.page - 1) / options_.page; }

  // The least and the largest key of every page, channel by channel.
  void AddBounds(const KeyHistory& keys) {
    const uint32_t width = shape_.head_dim;
    if (keys.tokens() < seen_) Begin({});
    for (; seen_ < keys.tokens(); ++seen_) {
      const size_t base = size_t{seen_ / options_.page} * width;
      const bool opens = seen_ % options_.page == 0;
      if (opens) {
        low_.resize(base + width);
        high_.resize(base + width);
      }
      for (uint32_t c = 0; c < width; ++c) {
        const float x = keys.At(seen_, c);
        low_[base + c] = opens ? x : std::min(low_[base + c], x);
        high_[base + c] = opens ? x : std::max(high_[base + c], x);
      }
    }
  }

  // No key of the page has a higher score.
  float Bound(const float* q, uint32_t page) const {
    const float* low = low_.data() + size_t{page} * shape_.head_dim;
    const float* high = high_.data() + size_t{page} * shape_.head_dim;
    float sum = 0;
    for (uint32_t c = 0; c < shape_.head_dim; ++c) sum += std::max(q[c] * low[c], q[c] * high[c]);
    return sum;
  }

  const HeadShape shape_;
  const QuestOptions options_;
  std::vector<float> low_, high_;  // [pages, head_dim]
  uint32_t seen_ = 0;              // tokens
};

}  // namespace

std::unique_ptr<HeadPolicy> MakeQuest(const HeadShape& shape, const QuestOptions& options) {
  return std::make_unique<Quest>(shape, options);
}

}  // namespace sparsekv
