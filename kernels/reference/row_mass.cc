#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/half.h"
#include "kernels/reference/operations.h"

namespace sparsekv::reference {

void RowMass(const RowMassArgs& args) {
  std::vector<double> sums(args.tokens);
  for (uint32_t g = 0; g < args.group; ++g) {
    std::vector<double> weights(args.tokens);
    double highest = -HUGE_VAL, total = 0;
    for (uint32_t t = args.first; t < args.tokens; ++t) {
      double dot = 0;
      for (uint32_t c = 0; c < args.head_dim; ++c) {
        const float key = LoadValue(args.rows.Row(args.kv_head, t), c, args.rows.layout->dtype);
        dot += double{args.q[g * args.head_dim + c]} * key;
      }
      weights[t] = dot * args.scale;
      highest = std::max(highest, weights[t]);
    }
    for (uint32_t t = args.first; t < args.tokens; ++t) {
      total += weights[t] = std::exp(weights[t] - highest);
    }
    for (uint32_t t = args.first; t < args.tokens; ++t) sums[t] += weights[t] / total;
  }
  for (uint32_t t = args.first; t < args.tokens; ++t) {
    args.mass[t] = static_cast<float>(sums[t] / args.group);
  }
}

void CountScores(const ScoreHistogramArgs& args) {
  for (uint32_t h = 0; h < args.kv_heads; ++h) {
    std::vector<float> numbers;
    const float* scores = args.scores + h * args.score_stride;
    for (uint32_t t = args.begin; t < args.end; ++t) {
      if (std::isfinite(args.Value(scores[t]))) numbers.push_back(args.Value(scores[t]));
    }
    ScoreHistogram& histogram = args.histograms[h] = {};
    if (!numbers.empty()) {
      histogram.low = *std::ranges::min_element(numbers);
      histogram.high = *std::ranges::max_element(numbers);
    }
    for (uint32_t t = args.begin; t < args.end; ++t) {
      const float bins = histogram.bins_per_score();
      ++histogram.counts[ScoreHistogram::Bin(args.Value(scores[t]), histogram.low, bins)];
    }
  }
}

}  // namespace sparsekv::reference
