#include <gtest/gtest.h>

#include "kernels/test_cases.h"
#include "kernels/window.h"

namespace sparsekv::testing {
namespace {

class LabelsTest : public BackendTest {
 protected:
  struct Case {
    uint32_t kv_heads;
    uint32_t group;
    uint32_t channels;
    std::vector<uint32_t> lengths;
    Pooling pooling;
    uint32_t window = 0;
    LabelFormat format = LabelFormat::kBf16;
  };

  // Scores by both backends; `zero_head` blanks the first query head.
  void Check(Random& random, const Case& test, bool zero_head) {
    const uint32_t head_dim = 64;
    const auto items_count = static_cast<uint32_t>(test.lengths.size());
    Labels labels(test.kv_heads, test.channels, test.lengths, test.format);
    const Shared<uint16_t> channels =
        Labels::Channels(random, test.kv_heads, head_dim, test.channels);
    Shared<float> q =
        random.Normals(size_t{2} * items_count * test.kv_heads * test.group * head_dim);
    if (zero_head) std::fill_n(q.begin(), size_t{test.group} * head_dim, 0.0f);
    const uint32_t longest = *std::max_element(test.lengths.begin(), test.lengths.end());
    const size_t stride = longest + 3;
    Output<float> got(items_count * test.kv_heads * stride);
    Output<float> expected(got.size());
    std::vector<ScoreLabelsArgs::Item> items;
    for (uint32_t i = 0; i < items_count; ++i) {
      labels.Fill(random, i, test.lengths[i]);
      items.push_back({.query = (i * 2) % (items_count * 2),
                       .tokens = test.lengths[i],
                       .labels = labels.Table(i),
                       .first = FirstInWindow(test.lengths[i] - 1, test.window)});
    }
    ScoreLabelsArgs args{.q = q.data(),
                         .kv_heads = test.kv_heads,
                         .group = test.group,
                         .head_dim = head_dim,
                         .channels = channels.data(),
                         .pooling = test.pooling,
                         .score_stride = stride};
    for (Output<float>* out : {&got, &expected}) {
      for (uint32_t i = 0; i < items_count; ++i) {
        items[i].scores = out->data() + i * test.kv_heads * stride;
      }
      args.items = items;
      (out == &got ? backend() : reference()).ScoreLabels(args);
    }
    Compare(test, stride, got, expected);
  }

 private:
  void Compare(const Case& test, size_t stride, const Output<float>& got,
               const Output<float>& expected) {
    EXPECT_TRUE(got.MarginsUntouched());
    for (size_t row = 0; row < test.lengths.size() * test.kv_heads; ++row) {
      const size_t length = test.lengths[row / test.kv_heads];
      EXPECT_TRUE(got.Untouched(row * stride + length, stride - length));
      const uint32_t first = FirstInWindow(test.lengths[row / test.kv_heads] - 1, test.window);
      EXPECT_TRUE(got.Untouched(row * stride, first));
      for (size_t t = row * stride + first; t < row * stride + length; ++t) {
        if (test.pooling == Pooling::kSoftmaxMass) {
          const float allowed = Tolerance(1e-5f, 1e-4f) * expected[t] + 1e-12f;
          ASSERT_TRUE(std::fabs(got[t] - expected[t]) <= allowed) << got[t] << " " << expected[t];
        } else {
          ASSERT_EQ(got[t], expected[t]) << "every backend gives the same scores";
        }
      }
    }
  }
};
SPARSEKV_ON_EVERY_BACKEND(LabelsTest);

TEST_P(LabelsTest, PooledScores) {
  Random random(31);
  for (Pooling pooling : {Pooling::kMaxNormalised, Pooling::kSum, Pooling::kSoftmaxMass}) {
    for (uint32_t round = 0; round < 9; ++round) {
      const Case test{.kv_heads = random.Between(1, 3),
                      .group = round + 1,
                      .channels = random.Between(1, 32),
                      .lengths = {random.Between(1, 400), random.Between(1, 70), 64},
                      .pooling = pooling};
      Check(random, test, round == 0);
    }
  }
}

TEST_P(LabelsTest, PooledScoresOfCodes) {
  Random random(35);
  for (Pooling pooling : {Pooling::kMaxNormalised, Pooling::kSum, Pooling::kSoftmaxMass}) {
    for (LabelFormat format : {LabelFormat::kInt8, LabelFormat::kInt4, LabelFormat::kInt2}) {
      for (uint32_t round = 0; round < 9; ++round) {
        const Case test{.kv_heads = random.Between(1, 3),
                        .group = round + 1,
                        .channels = random.Pick({8u, 16u, 32u, random.Between(1, 64)}),
                        .lengths = {random.Between(1, 400), random.Between(1, 70), 64},
                        .pooling = pooling,
                        .format = format};
        Check(random, test, round == 0);
      }
    }
  }
}

TEST_P(LabelsTest, Windows) {
  if (cuda()) GTEST_SKIP() << "no windows on this backend";
  Random random(34);
  for (Pooling pooling : {Pooling::kMaxNormalised, Pooling::kSum, Pooling::kSoftmaxMass}) {
    for (uint32_t window : {1u, 24u, 64u, 129u, 1500u}) {
      for (LabelFormat format : {LabelFormat::kBf16, LabelFormat::kInt4}) {
        const std::vector<uint32_t> lengths = {random.Between(1, 400), 64, 2000, 200};
        Check(random, {2, 3, 5, lengths, pooling, window, format}, false);
      }
    }
  }
}

TEST_P(LabelsTest, ManyPages) {
  Random random(32);
  for (Pooling pooling : {Pooling::kMaxNormalised, Pooling::kSum, Pooling::kSoftmaxMass}) {
    for (LabelFormat format : kLabelFormats) {
      Check(random, {1, 2, 4, {64 * 64 + 1, 9001}, pooling, 0, format}, false);
    }
  }
}

// Numbers that are none, or too large, or all the same: every score is a number still.
TEST_P(LabelsTest, CodesOfAnythingScoreNumbers) {
  Random random(36);
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::initializer_list<float> values = {kNan, kInfinity, -kInfinity, 1e9f,   -1e30f,
                                               0.0f, -0.0f,     1e-45f,     -1e-7f, 3.0f};
  const uint32_t tokens = 300, dim = 32;
  for (LabelFormat format : {LabelFormat::kInt8, LabelFormat::kInt4, LabelFormat::kInt2}) {
    for (uint32_t channels : {1u, 2u, 7u}) {
      Labels labels(1, channels, {tokens}, format);
      labels.FillWith(0, tokens, [&] { return random.Pick(values); });
      const Shared<uint16_t> chosen = Labels::Channels(random, 1, dim, channels);
      Shared<float> q(2 * dim);
      for (float& x : q) x = random.Pick(values);
      Output<float> got(tokens), expected(tokens);
      for (Output<float>* out : {&got, &expected}) {
        const ScoreLabelsArgs::Item item = {
            .tokens = tokens, .labels = labels.Table(0), .scores = out->data()};
        (out == &got ? backend() : reference())
            .ScoreLabels({.q = q.data(),
                          .kv_heads = 1,
                          .group = 2,
                          .head_dim = dim,
                          .channels = chosen.data(),
                          .pooling = Pooling::kSum,
                          .score_stride = tokens,
                          .items = {&item, 1}});
      }
      for (uint32_t t = 0; t < tokens; ++t) EXPECT_TRUE(std::isfinite(expected[t])) << expected[t];
      ExpectSameBits(got.data(), expected.data(), tokens, "scores");
    }
  }
}

TEST_P(LabelsTest, MassesSumToTheGroup) {
  Random random(33);
  const uint32_t tokens = 5003;
  const uint32_t group = 3;
  Labels labels(1, 8, {tokens});
  labels.Fill(random, 0, tokens);
  const Shared<uint16_t> channels = Labels::Channels(random, 1, 32, 8);
  const Shared<float> q = random.Normals(group * 32, 3.0f);
  Output<float> scores(tokens);
  const std::vector<ScoreLabelsArgs::Item> items = {
      {.query = 0, .tokens = tokens, .labels = labels.Table(0), .scores = scores.data()}};
  backend().ScoreLabels({.q = q.data(),
                         .kv_heads = 1,
                         .group = group,
                         .head_dim = 32,
                         .channels = channels.data(),
                         .pooling = Pooling::kSoftmaxMass,
                         .score_stride = tokens,
                         .items = items});
  EXPECT_NEAR(std::accumulate(scores.data(), scores.data() + tokens, 0.0), group, 1e-4);
}

}  // namespace
}  // namespace sparsekv::testing
