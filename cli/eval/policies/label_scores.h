#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "cli/eval/policies/label_store.h"
#include "cli/eval/policies/policies.h"

namespace sparsekv {

// The labels of one (layer, KV head) and what they say of a query: as ScoreLabelsArgs says
// (kernels/labels.h), in the same order. One thread.
class LabelScores {
 public:
  LabelScores(const HeadShape& shape, const DoubleSparsityOptions& options);

  void Begin(const KeyHistory& keys);
  // Forgets the tokens after the first so many.
  void Truncate(uint32_t tokens);
  // Labels of the tokens that are new.
  void Add(const KeyHistory& keys);
  // Of the first `tokens` tokens, valid until the next call. q: [group, head_dim].
  std::span<const float> Score(const float* q, uint32_t tokens);
  // Mean over the group of a query head's length on the label channels, at its bits.
  double QueryNorm(const float* q) const;
  size_t Bytes(uint32_t tokens) const;
  const HeadShape& shape() const { return shape_; }
  Pooling pooling() const { return options_.pooling; }

 private:
  // A query head at the label channels, at its bits.
  std::vector<float> Query(const float* q, uint32_t head) const;

  const HeadShape shape_;
  const DoubleSparsityOptions options_;
  const std::vector<uint16_t> channels_;
  std::optional<LabelStore> labels_;
  std::vector<float> scores_;
};

}  // namespace sparsekv
