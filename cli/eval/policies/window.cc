#include <algorithm>

#include "cli/eval/policies/policies.h"

namespace sparsekv {

namespace {

class Window : public HeadPolicy {
 public:
  Window(uint32_t globals, uint32_t dilation) : globals_(globals), dilation_(dilation) {}

  void Select(const HeadStep& step, HeadSelection* selection) override {
    std::vector<uint32_t>& rows = selection->rows;
    const uint32_t globals = std::min(globals_, step.rows - 1);
    for (uint32_t t = 0; t < globals; ++t) rows.push_back(t);
    for (int64_t t = step.tokens() - 1; t >= globals && rows.size() < step.rows; t -= dilation_) {
      rows.push_back(static_cast<uint32_t>(t));
    }
    std::ranges::sort(rows);
  }

 private:
  const uint32_t globals_, dilation_;
};

}  // namespace

std::unique_ptr<HeadPolicy> MakeWindow(uint32_t globals, uint32_t dilation) {
  return std::make_unique<Window>(globals, dilation);
}

}  // namespace sparsekv
