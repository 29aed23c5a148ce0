#include <algorithm>
#include <cmath>

#include "cli/eval/policies/policies.h"
#include "cli/eval/policies/scores.h"

namespace sparsekv {

namespace {

class Sparq : public HeadPolicy {
 public:
  Sparq(const HeadShape& shape, const SparqOptions& options)
      : shape_(shape),
        options_(options),
        channels_(options.channels ? options.channels : std::max(1u, shape.head_dim / 8)) {}

  void Select(const HeadStep& step, HeadSelection* selection) override {
    const uint32_t tokens = step.tokens();
    const std::vector<uint16_t> channels = LargestOfQuery(step.q);
    std::vector<std::vector<float>> approximate(shape_.group, std::vector<float>(tokens));
    std::vector<float> sum(tokens, 0.0f);
    for (uint32_t h = 0; h < shape_.group; ++h) {
      const float* q = step.q + size_t{h} * shape_.head_dim;
      ScoreKeys(q, *step.keys, tokens, channels, approximate[h].data());
      Softmax(approximate[h], shape_.scale / std::sqrt(Share(q, channels)));
      for (uint32_t t = 0; t < tokens; ++t) sum[t] += approximate[h][t];
    }
    const auto local = static_cast<uint32_t>(options_.local * step.rows);
    selection->rows = TopRows(sum, step.rows, 0, std::max(local, 1u));
    selection->index_bytes = IndexBytes(tokens);
    if (!options_.mean_value) return;
    for (const std::vector<float>& of_head : approximate) {
      double share = 0;
      for (uint32_t row : selection->rows) share += of_head[row];
      selection->share.push_back(static_cast<float>(std::min(share, 1.0)));
    }
  }

  // A second copy of K, channel by channel, and the mean of V.
  size_t IndexBytes(uint32_t tokens) const override {
    return size_t{tokens} * channels_ * shape_.value_bytes +
           (options_.mean_value ? shape_.key_bytes() : 0);
  }

 private:
  // The channels with the largest |q|, summed over the group.
  std::vector<uint16_t> LargestOfQuery(const float* q) const {
    std::vector<float> size(shape_.head_dim, 0.0f);
    for (size_t i = 0; i < size_t{shape_.group} * shape_.head_dim; ++i) {
      size[i % shape_.head_dim] += std::fabs(q[i]);
    }
    const auto rows = TopRows(size, std::min(channels_, shape_.head_dim), 0, 0);
    return {rows.begin(), rows.end()};
  }

  // How much of the query the channels hold, which makes the softmax of the rest as warm.
  float Share(const float* q, const std::vector<uint16_t>& channels) const {
    float all = 0, taken = 0;
    for (uint32_t c = 0; c < shape_.head_dim; ++c) all += std::fabs(q[c]);
    for (uint16_t c : channels) taken += std::fabs(q[c]);
    return all > 0 && taken > 0 ? taken / all : 1.0f;
  }

  const HeadShape shape_;
  const SparqOptions options_;
  const uint32_t channels_;
};

}  // namespace

std::unique_ptr<HeadPolicy> MakeSparq(const HeadShape& shape, const SparqOptions& options) {
  return std::make_unique<Sparq>(shape, options);
}

}  // namespace sparsekv
