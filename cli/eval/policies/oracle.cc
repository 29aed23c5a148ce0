#include "cli/eval/policies/policies.h"
#include "cli/eval/policies/scores.h"

namespace sparsekv {

namespace {

class Oracle : public HeadPolicy {
 public:
  explicit Oracle(const HeadShape& shape) : shape_(shape) {}

  void Select(const HeadStep& step, HeadSelection* selection) override {
    GroupAttention(step.q, *step.keys, step.tokens(), shape_, &attention_);
    selection->rows = TopRows(attention_, step.rows, 0, 0);
  }

 private:
  const HeadShape shape_;
  std::vector<float> attention_;
};

}  // namespace

std::unique_ptr<HeadPolicy> MakeOracle(const HeadShape& shape) {
  return std::make_unique<Oracle>(shape);
}

}  // namespace sparsekv
