#include "cli/eval/policies/policies.h"
#include "cli/eval/policies/scores.h"
#include "cli/recall/seeded_random.h"

namespace sparsekv {

namespace {

class Random : public HeadPolicy {
 public:
  Random(const HeadShape& shape, AlwaysRows always, uint64_t seed)
      : always_(always),
        seed_(seed ^ (uint64_t{shape.layer} << 48) ^ (uint64_t{shape.kv_head} << 32)) {}

  // A function of seed, head and position, so that no step depends on the ones before.
  void Select(const HeadStep& step, HeadSelection* selection) override {
    SeededRandom random(seed_, step.tokens());
    scores_.resize(step.tokens());
    for (float& s : scores_) s = static_cast<float>(random.Next() >> 40);
    selection->rows = TopRows(scores_, step.rows, always_.sinks, always_.recent);
  }

 private:
  const AlwaysRows always_;
  const uint64_t seed_;
  std::vector<float> scores_;
};

}  // namespace

std::unique_ptr<HeadPolicy> MakeRandom(const HeadShape& shape, AlwaysRows always, uint64_t seed) {
  return std::make_unique<Random>(shape, always, seed);
}

}  // namespace sparsekv
