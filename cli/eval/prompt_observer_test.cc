#include "cli/eval/prompt_observer.h"

#include <gtest/gtest.h>

#include <cmath>

#include "cli/recall/seeded_random.h"

namespace sparsekv {
namespace {

constexpr uint32_t kTokens = 150, kGroup = 2, kKvHeads = 3, kWidth = 8;

// Causal attention of one query, mean over the group, in doubles.
std::vector<double> Attention(const std::vector<float>& q, uint32_t at, uint32_t head,
                              const KeyHistory& keys) {
  std::vector<double> mean(at + 1);
  for (uint32_t g = 0; g < kGroup; ++g) {
    std::vector<double> weights;
    double sum = 0;
    for (uint32_t t = 0; t <= at; ++t) {
      double score = 0;
      for (uint32_t c = 0; c < kWidth; ++c) {
        score += q[((at * kKvHeads + head) * kGroup + g) * kWidth + c] * keys.At(t, c);
      }
      weights.push_back(std::exp(score / std::sqrt(double{kWidth})));
      sum += weights.back();
    }
    for (uint32_t t = 0; t <= at; ++t) mean[t] += weights[t] / sum / kGroup;
  }
  return mean;
}

// In chunks, as a prompt comes: the sums of every query (or of every fourth, four times), and the
// last ones.
TEST(PromptObserver, SumsAndKeepsAttention) {
  SeededRandom random(1, 1);
  std::vector<float> q(size_t{kTokens} * kKvHeads * kGroup * kWidth);
  for (float& x : q) x = static_cast<float>(random.Normal());
  std::vector<KeyHistory> keys(kKvHeads, KeyHistory(kWidth, kTokens));
  for (uint32_t t = 0; t < kTokens; ++t) {
    for (KeyHistory& history : keys) {
      float key[kWidth];
      for (float& x : key) x = static_cast<float>(random.Normal());
      history.Append(key);
    }
  }
  for (uint32_t stride : {1u, 4u}) {
    std::vector<HeadShape> shapes;
    for (uint32_t h = 0; h < kKvHeads; ++h) {
      shapes.push_back({.kv_head = h,
                        .head_dim = kWidth,
                        .group = kGroup,
                        .scale = 1 / std::sqrt(float{kWidth})});
    }
    PromptObserver observer(
        {.attention = true, .stride = stride, .last_attention = true, .threads = 2}, shapes,
        kKvHeads);
    observer.Begin(kTokens);
    for (uint32_t at = 0; at < kTokens; at += 64) {
      const uint32_t count = std::min(64u, kTokens - at);
      observer.Observe(0, q.data() + size_t{at} * kKvHeads * kGroup * kWidth, at, count, keys);
    }
    for (uint32_t h = 0; h < kKvHeads; ++h) {
      std::vector<double> sum(kTokens);
      const auto last = observer.last_attention(h);
      ASSERT_EQ(last.size(), size_t{PromptObserver::kLastQueries});
      for (uint32_t at = 0; at < kTokens; ++at) {
        const auto attention = Attention(q, at, h, keys[h]);
        for (uint32_t t = 0; t <= at && (at + 1) % stride == 0; ++t) {
          sum[t] += attention[t] * stride;
        }
        if (at + last.size() < kTokens) continue;
        const auto& kept = last[at + last.size() - kTokens];
        ASSERT_EQ(kept.size(), attention.size());
        for (uint32_t t = 0; t <= at; ++t) ASSERT_NEAR(kept[t], attention[t], 1e-5);
      }
      for (uint32_t t = 0; t < kTokens; ++t) {
        ASSERT_NEAR(observer.attention(h)[t], sum[t], 1e-3) << h << " " << t;
      }
    }
  }
}

}  // namespace
}  // namespace sparsekv
