#include "gpu_worker/mass_curve.h"

#include <algorithm>
#include <cmath>

namespace sparsekv {

MassCurve MassCurve::Estimated(const ScoreHistogram& histogram, double logits_per_score) {
  MassCurve curve;
  for (uint32_t i = 0; i < kScoreBins; ++i) {
    const uint32_t bin = kScoreBins - 1 - i, count = histogram.counts[bin];
    const double below = logits_per_score * (histogram.Middle(bin) - histogram.high);
    curve.rows_[i + 1] = curve.rows_[i] + count;
    curve.share_[i + 1] = curve.share_[i] + (count > 0 ? count * std::exp(below) : 0);
  }
  const double total = curve.share_.back();
  if (total > 0) {
    for (double& share : curve.share_) share /= total;
  }
  return curve;
}

MassCurve MassCurve::Measured(const ScoreHistogram& histogram,
                              const std::array<double, kScoreBins>& mass, double always) {
  MassCurve curve;
  curve.share_[0] = always;
  for (uint32_t i = 0; i < kScoreBins; ++i) {
    const uint32_t bin = kScoreBins - 1 - i;
    curve.rows_[i + 1] = curve.rows_[i] + histogram.counts[bin];
    curve.share_[i + 1] = curve.share_[i] + mass[bin];
  }
  return curve;
}

double MassCurve::Share(double rows) const {
  const auto above = std::ranges::upper_bound(rows_, rows);
  if (above == rows_.begin()) return share_.front();
  if (above == rows_.end()) return share_.back();
  const auto i = static_cast<size_t>(above - rows_.begin());
  const double part = (rows - rows_[i - 1]) / (rows_[i] - rows_[i - 1]);
  return share_[i - 1] + part * (share_[i] - share_[i - 1]);
}

uint32_t RowsForShare(std::span<const MassCurve> heads, double share) {
  uint32_t low = 0, high = heads.empty() ? 0 : heads[0].rows();
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    double sum = 0;
    for (const MassCurve& head : heads) sum += head.Share(middle);
    if (sum >= share * static_cast<double>(heads.size())) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

}  // namespace sparsekv
