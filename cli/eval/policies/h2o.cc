#include <algorithm>

#include "base/check.h"
#include "cli/eval/policies/policies.h"
#include "cli/eval/policies/scores.h"

namespace sparsekv {

namespace {

class H2o : public HeadPolicy {
 public:
  H2o(const HeadShape& shape, double recent) : shape_(shape), recent_(recent) {}

  void Begin(const PromptStatistics& prompt) override {
    const uint32_t tokens = prompt.keys->tokens();
    CHECK_EQ(prompt.attention.size(), size_t{tokens});
    rows_.resize(tokens);
    for (uint32_t t = 0; t < tokens; ++t) rows_[t] = t;
    received_.assign(prompt.attention.begin(), prompt.attention.end());
  }

  void Select(const HeadStep& step, HeadSelection* selection) override {
    rows_.push_back(step.tokens() - 1);
    received_.push_back(0);
    Evict(step.rows);
    GroupAttention(step.q, *step.keys, shape_, rows_, &attention_);
    for (size_t i = 0; i < rows_.size(); ++i) received_[i] += attention_[i];
    selection->rows = rows_;
    selection->index_bytes = rows_.size() * sizeof(float);  // the sums
  }

  size_t IndexBytes(uint32_t) const override { return 0; }

 private:
  // Leaves `rows`: the last ones, and of the rest those that received most; the older goes first.
  void Evict(uint32_t rows) {
    if (rows_.size() <= rows) return;
    const auto last = std::max(1u, static_cast<uint32_t>(recent_ * rows));
    const std::vector<uint32_t> kept = TopKept(rows, last);
    for (size_t i = 0; i < kept.size(); ++i) {
      rows_[i] = rows_[kept[i]];
      received_[i] = received_[kept[i]];
    }
    rows_.resize(kept.size());
    received_.resize(kept.size());
  }

  // Ties by the newer, so that who came first goes first.
  std::vector<uint32_t> TopKept(uint32_t rows, uint32_t last) const {
    std::vector<float> reversed(received_.rbegin(), received_.rend());
    std::vector<uint32_t> kept = TopRows(reversed, rows, last, 0);
    for (uint32_t& i : kept) i = static_cast<uint32_t>(received_.size()) - 1 - i;
    std::ranges::reverse(kept);
    return kept;
  }

  const HeadShape shape_;
  const double recent_;
  std::vector<uint32_t> rows_;    // kept, ascending
  std::vector<float> received_;   // attention so far
  std::vector<float> attention_;  // of this step
};

}  // namespace

std::unique_ptr<HeadPolicy> MakeH2o(const HeadShape& shape, double recent) {
  return std::make_unique<H2o>(shape, recent);
}

}  // namespace sparsekv
