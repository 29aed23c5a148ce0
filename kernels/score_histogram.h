#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace sparsekv {

inline constexpr uint32_t kScoreBins = 256;

// How many rows of a KV head have which score: bins of equal width between the lowest and the
// highest number. Scores that are no numbers are in bin 0.
struct ScoreHistogram {
  float low = 0, high = 0;  // both 0 where no score is a number
  uint32_t counts[kScoreBins] = {};

  float bins_per_score() const { return high > low ? kScoreBins / (high - low) : 0; }
  // Its own products in float32: the same bin on every backend.
  static uint32_t Bin(float score, float low, float bins_per_score) {
    const float place = (score - low) * bins_per_score;
    if (!(place > 0)) return 0;
    return place < kScoreBins ? static_cast<uint32_t>(place) : kScoreBins - 1;
  }
  // The score in the middle of a bin.
  double Middle(uint32_t bin) const {
    return low + (double{high} - low) * (bin + 0.5) / kScoreBins;
  }
};

// histograms[kv_head] of scores[kv_head][t] for begin <= t < end.
// Backends whose memory is the host's only.
struct ScoreHistogramArgs {
  const float* scores = nullptr;  // [kv_heads, score_stride]
  uint32_t kv_heads = 0;
  size_t score_stride = 0;
  uint32_t begin = 0, end = 0;
  // Of their logarithms: scores that are masses (Pooling::kSoftmaxMass).
  bool logarithms = false;
  ScoreHistogram* histograms = nullptr;  // [kv_heads]

  float Value(float score) const { return logarithms ? std::log(score) : score; }
};

}  // namespace sparsekv
