#include <algorithm>
#include <numeric>

#include "cli/eval/policies/policies.h"

namespace sparsekv {

namespace {

class Streaming : public HeadPolicy {
 public:
  Streaming(uint32_t sinks, SinkDistance distance) : sinks_(sinks), distance_(distance) {}

  void Select(const HeadStep& step, HeadSelection* selection) override {
    const uint32_t tokens = step.tokens();
    const uint32_t sinks = std::min(sinks_, step.rows - 1), window = step.rows - sinks;
    std::vector<uint32_t>& rows = selection->rows;
    rows.resize(step.rows);
    std::iota(rows.begin(), rows.begin() + sinks, 0u);
    std::iota(rows.begin() + sinks, rows.end(), tokens - window);
    if (distance_ == SinkDistance::kText) return;
    for (uint32_t i = 0; i < rows.size(); ++i) {
      const uint32_t distance = tokens - 1 - rows[i];
      selection->distances.push_back(distance_ == SinkDistance::kCache
                                         ? step.rows - 1 - i
                                         : std::min(distance, step.rows - 1));
    }
  }

 private:
  const uint32_t sinks_;
  const SinkDistance distance_;
};

}  // namespace

std::unique_ptr<HeadPolicy> MakeStreaming(uint32_t sinks, SinkDistance distance) {
  return std::make_unique<Streaming>(sinks, distance);
}

}  // namespace sparsekv
