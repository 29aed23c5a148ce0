#include <gtest/gtest.h>

#include "kernels/test_cases.h"

namespace sparsekv::testing {
namespace {

// Both operations are the host's: a device with memory of its own is not given them.
class RowMassTest : public BackendTest {
 protected:
  void SetUp() override {
    BackendTest::SetUp();
    if (cuda()) GTEST_SKIP() << "not an operation of devices";
  }
};
SPARSEKV_ON_EVERY_BACKEND(RowMassTest);

TEST_P(RowMassTest, RandomShapesAndWindows) {
  Random random(51);
  for (int round = 0; round < (slow() ? 10 : 40); ++round) {
    const uint32_t kv_heads = random.Between(1, 3), group = random.Between(1, 8);
    const uint32_t dim = 8 * random.Between(1, 32), tokens = random.Between(1, 3000);
    const uint32_t first = random.Between(0, 1) ? random.Between(0, tokens - 1) : 0;
    const DType dtype = random.Pick({DType::kF32, DType::kF16, DType::kBF16});
    SCOPED_TRACE(::testing::Message() << tokens << " tokens from " << first << ", " << group
                                      << " heads of " << dim << " " << Name(dtype));
    Rows rows(random, kv_heads, dim, dtype, {tokens});
    rows.Fill(random, 0, tokens);
    const Shared<float> q = random.Normals(size_t{group} * dim, 2.0f);
    Output<float> got(tokens), expected(tokens), others(tokens);
    RowMassArgs args = {.q = q.data(),
                        .rows = rows.Table(0),
                        .kv_head = random.Between(0, kv_heads - 1),
                        .tokens = tokens,
                        .first = first,
                        .group = group,
                        .head_dim = dim,
                        .scale = 1 / std::sqrt(static_cast<float>(dim)),
                        .mass = got.data()};
    backend().RowMass(args);
    args.mass = expected.data();
    reference().RowMass(args);
    args.mass = others.data();
    other().RowMass(args);
    EXPECT_TRUE(got.MarginsUntouched());
    EXPECT_TRUE(got.Untouched(0, first));
    double sum = 0;
    for (uint32_t t = first; t < tokens; ++t) {
      ASSERT_NEAR(got[t], expected[t], 1e-5f + 2e-4f * expected[t]) << t;
      sum += got[t];
    }
    EXPECT_NEAR(sum, 1, 1e-4);
    ExpectSameBits(others.data() + first, got.data() + first, tokens - first, "threads");
  }
}

TEST_P(RowMassTest, HistogramsAreTheReferences) {
  Random random(52);
  for (int round = 0; round < 40; ++round) {
    const uint32_t kv_heads = random.Between(1, 3), end = random.Between(1, 5000);
    const uint32_t begin = random.Between(0, end - 1);
    const size_t stride = end + random.Between(0, 9);
    const bool logarithms = round % 4 == 0;
    Shared<float> scores = random.Normals(kv_heads * stride, round % 3 == 0 ? 0.0f : 3.0f);
    for (float& score : scores) {
      if (logarithms) score = std::fabs(score);
      if (random.Between(0, 50) == 0) score = std::numeric_limits<float>::quiet_NaN();
    }
    std::vector<ScoreHistogram> got(kv_heads), expected(kv_heads);
    ScoreHistogramArgs args = {.scores = scores.data(),
                               .kv_heads = kv_heads,
                               .score_stride = stride,
                               .begin = begin,
                               .end = end,
                               .logarithms = logarithms,
                               .histograms = got.data()};
    backend().CountScores(args);
    args.histograms = expected.data();
    reference().CountScores(args);
    for (uint32_t h = 0; h < kv_heads; ++h) {
      EXPECT_EQ(got[h].low, expected[h].low);
      EXPECT_EQ(got[h].high, expected[h].high);
      uint64_t all = 0;
      for (uint32_t bin = 0; bin < kScoreBins; ++bin) {
        EXPECT_EQ(got[h].counts[bin], expected[h].counts[bin]) << bin;
        all += got[h].counts[bin];
      }
      EXPECT_EQ(all, end - begin);
    }
  }
}

TEST_P(RowMassTest, BinsAreInTheOrderOfScores) {
  const Shared<float> scores = {-2, 6, 2, -2, std::numeric_limits<float>::infinity()};
  ScoreHistogram histogram;
  backend().CountScores({.scores = scores.data(),
                         .kv_heads = 1,
                         .score_stride = scores.size(),
                         .begin = 0,
                         .end = 5,
                         .histograms = &histogram});
  EXPECT_EQ(histogram.low, -2);
  EXPECT_EQ(histogram.high, 6);
  EXPECT_EQ(histogram.counts[0], 2u);
  EXPECT_EQ(histogram.counts[kScoreBins / 2], 1u);
  EXPECT_EQ(histogram.counts[kScoreBins - 1], 2u);  // the highest, and what is beyond
  EXPECT_NEAR(histogram.Middle(kScoreBins - 1), 6, 8.0 / kScoreBins);
}

}  // namespace
}  // namespace sparsekv::testing
