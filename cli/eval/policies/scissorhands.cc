#include <algorithm>
#include <deque>
#include <numeric>

#include "cli/eval/policies/policies.h"
#include "cli/eval/policies/scores.h"

namespace sparsekv {

namespace {

class Scissorhands : public HeadPolicy {
 public:
  Scissorhands(const HeadShape& shape, const ScissorhandsOptions& options)
      : shape_(shape), options_(options) {}

  void Begin(const PromptStatistics& prompt) override {
    history_.clear();
    rows_.resize(prompt.keys->tokens());
    std::iota(rows_.begin(), rows_.end(), 0u);
    for (const std::vector<float>& attention : prompt.last_attention) {
      Remember(attention, std::span(rows_).first(attention.size()));
    }
  }

  void Select(const HeadStep& step, HeadSelection* selection) override {
    rows_.push_back(step.tokens() - 1);
    if (rows_.size() > step.rows) Compress(step.rows);
    GroupAttention(step.q, *step.keys, shape_, rows_, &attention_);
    Remember(attention_, rows_);
    selection->rows = rows_;
    selection->index_bytes = rows_.size() * sizeof(uint16_t);  // the counts
  }

 private:
  // Which rows got less than the average of a query's attention.
  void Remember(std::span<const float> attention, std::span<const uint32_t> rows) {
    std::vector<uint32_t> low;
    const float average = 1.0f / static_cast<float>(rows.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      if (attention[i] < average) low.push_back(rows[i]);
    }
    history_.push_back(std::move(low));
    if (history_.size() > options_.history) history_.pop_front();
  }

  // Drops a share of the budget, and what is over it: the rows that were low most often, the older
  // first.
  void Compress(uint32_t budget) {
    std::vector<float> score(rows_.size(), 0.0f);  // minus how often it was low
    for (const std::vector<uint32_t>& low : history_) {
      size_t i = 0;
      for (uint32_t row : low) {
        while (i < rows_.size() && rows_[i] < row) ++i;
        if (i < rows_.size() && rows_[i] == row) score[i] -= 1;
      }
    }
    const auto drop = static_cast<uint32_t>(options_.drop * budget);
    const uint32_t keep = std::max(budget - drop, 1u);
    std::ranges::reverse(score);
    std::vector<uint32_t> kept = TopRows(score, keep, std::min(options_.recent, keep), 0);
    for (uint32_t& i : kept) i = rows_[rows_.size() - 1 - i];
    std::ranges::reverse(kept);
    rows_ = std::move(kept);
  }

  const HeadShape shape_;
  const ScissorhandsOptions options_;
  std::vector<uint32_t> rows_;                 // kept, ascending
  std::deque<std::vector<uint32_t>> history_;  // rows that were low, of the last steps
  std::vector<float> attention_;
};

}  // namespace

std::unique_ptr<HeadPolicy> MakeScissorhands(const HeadShape& shape,
                                             const ScissorhandsOptions& options) {
  return std::make_unique<Scissorhands>(shape, options);
}

}  // namespace sparsekv
