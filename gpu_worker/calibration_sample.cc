#include "gpu_worker/calibration_sample.h"

#include <algorithm>
#include <cmath>

namespace sparsekv {

HeadSample::Range HeadSample::Seen(size_t i) const {
  const uint32_t present = positions[i] + 1, first = FirstInWindow(positions[i], window);
  const uint32_t low = std::max(first, kSinkTokens);
  const uint32_t high = present > kRecentTokens + 1 ? present - kRecentTokens - 1 : 0;
  return low < high ? Range{first, low, high, present} : Range{first, first, first, present};
}

void HeadSample::Attention(size_t i, uint32_t h, float* attention) const {
  const Range seen = Seen(i);
  const float* q = Query(i, h);
  std::fill(attention + seen.first, attention + seen.present, 0.0f);
  for (uint32_t c = 0; c < head_dim; ++c) {
    const float* k = Channel(c);
    for (uint32_t t = seen.first; t < seen.present; ++t) attention[t] += q[c] * k[t];
  }
  const float highest = *std::max_element(attention + seen.first, attention + seen.present);
  double total = 0;
  for (uint32_t t = seen.first; t < seen.present; ++t) {
    attention[t] = std::exp((attention[t] - highest) * scale);
    total += attention[t];
  }
  const auto factor = static_cast<float>(1 / total);
  for (uint32_t t = seen.first; t < seen.present; ++t) attention[t] *= factor;
}

}  // namespace sparsekv
