#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "kernels/score_histogram.h"

namespace sparsekv {

// The rows of one KV head that a selection chooses among, best label score first: how much of the
// attention the first so many hold, at the resolution of a histogram. Pure.
class MassCurve {
 public:
  // As the scores say: a row's weight is e^(logits_per_score * score).
  static MassCurve Estimated(const ScoreHistogram& histogram, double logits_per_score);
  // As measured: what the rows of each bin hold, and what is held by rows that are taken anyway.
  static MassCurve Measured(const ScoreHistogram& histogram,
                            const std::array<double, kScoreBins>& mass, double always);

  // Of the best `rows` and of those that are taken anyway, 0 .. 1; linear inside a bin.
  double Share(double rows) const;
  uint32_t rows() const { return static_cast<uint32_t>(rows_.back()); }

 private:
  // Up to the i-th best bin, sums; [0] is before the first.
  std::array<double, kScoreBins + 1> rows_ = {}, share_ = {};
};

// The fewest rows with which the heads reach the share in their mean; all where none do. All heads
// have as many rows.
uint32_t RowsForShare(std::span<const MassCurve> heads, double share);

}  // namespace sparsekv
