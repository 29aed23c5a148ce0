#include <gtest/gtest.h>

#include "kernels/test_cases.h"

namespace sparsekv::testing {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

class SelectTest : public BackendTest {
 protected:
  std::vector<uint32_t> Select(Backend& backend, const Shared<float>& scores, uint32_t count) {
    Output<uint32_t> selection(count);
    const std::vector<SelectArgs::Item> items = {{.scores = scores.data(),
                                                  .tokens = static_cast<uint32_t>(scores.size()),
                                                  .count = count,
                                                  .selection = selection.data()}};
    backend.Select(
        {.kv_heads = 1, .score_stride = scores.size(), .selection_stride = count, .items = items});
    EXPECT_TRUE(selection.MarginsUntouched());
    return {selection.data(), selection.data() + count};
  }

  void Check(const Shared<float>& scores, uint32_t count) {
    EXPECT_EQ(Select(backend(), scores, count), Select(reference(), scores, count))
        << scores.size() << " tokens, " << count << " selected";
  }
};
SPARSEKV_ON_EVERY_BACKEND(SelectTest);

TEST_P(SelectTest, RandomScores) {
  Random random(41);
  for (int round = 0; round < 100; ++round) {
    const uint32_t tokens = random.Between(1, round % 10 == 0 ? 20000 : 400);
    Check(random.Normals(tokens), random.Between(AlwaysSetSize(tokens), tokens));
  }
}

TEST_P(SelectTest, FewDistinctValues) {
  Random random(42);
  for (int round = 0; round < 100; ++round) {
    const uint32_t tokens = random.Between(70, 700);
    Shared<float> scores(tokens);
    for (float& score : scores) {
      score = random.Pick({0.0f, -0.0f, 1.0f, -1.0f, kNan, -kNan, kInfinity, -kInfinity, 1e-45f});
    }
    Check(scores, random.Between(AlwaysSetSize(tokens), tokens));
  }
}

TEST_P(SelectTest, TiesGoToTheLowerIndex) {
  Shared<float> scores(300, 0.5f);
  scores[10] = -0.0f;
  scores[200] = 0.7f;
  const std::vector<uint32_t> got = Select(backend(), scores, AlwaysSetSize(300) + 8);
  std::vector<uint32_t> expected = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 200};
  for (uint32_t t = 300 - kRecentTokens - 1; t < 300; ++t) expected.push_back(t);
  EXPECT_EQ(got, expected);
}

TEST_P(SelectTest, ZerosOfBothSignsTie) {
  Shared<float> scores(100, -1.0f);
  scores[7] = -0.0f;
  scores[9] = 0.0f;
  const std::vector<uint32_t> got = Select(backend(), scores, AlwaysSetSize(100) + 1);
  EXPECT_EQ(got[kSinkTokens], 7u);
}

TEST_P(SelectTest, NanRanksBelowMinusInfinity) {
  Shared<float> scores(100, kNan);
  scores[20] = -kInfinity;
  const std::vector<uint32_t> got = Select(backend(), scores, AlwaysSetSize(100) + 2);
  EXPECT_EQ(got[kSinkTokens], 4u);  // the first NaN
  EXPECT_EQ(got[kSinkTokens + 1], 20u);
}

TEST_P(SelectTest, ScoresThatDifferInTheLastBitsOnly) {
  Random random(43);
  Shared<float> scores(5000);
  for (float& score : scores) score = std::bit_cast<float>(0x3F800000u + random.Between(0, 600));
  for (uint32_t count : {100u, 1000u, 2500u, 4999u}) Check(scores, count);
}

// Long enough that a sample of the scores is taken; selections of any share of them.
TEST_P(SelectTest, LongRows) {
  Random random(45);
  for (uint32_t tokens : {8261u, 30000u, 50001u}) {
    Shared<float> scores = random.Normals(tokens);
    for (uint32_t count : {70u, 200u, 2048u, tokens / 3, tokens - 1}) Check(scores, count);
    // Few values: ties at the threshold.
    for (float& score : scores) score = std::round(score * 4);
    for (uint32_t count : {70u, 200u, 2048u}) Check(scores, count);
    std::fill(scores.begin(), scores.end(), 0.25f);
    Check(scores, 500);
    for (float& score : scores) score = random.Between(0, 9) == 0 ? random.Normal() : kNan;
    Check(scores, 500);
  }
}

TEST_P(SelectTest, AVeryLongRow) {
  Random random(47);
  Check(random.Normals(131072), 2048);
}

// What a sample cannot see: all high scores in one place, or none of them where it looks.
TEST_P(SelectTest, LongRowsWhoseSampleMisleads) {
  Random random(46);
  const uint32_t tokens = 40000;
  Shared<float> scores = random.Normals(tokens);
  for (uint32_t t = 20000; t < 21500; ++t) scores[t] += 100;
  for (uint32_t count : {100u, 1000u, 1569u, 1700u, 3000u}) Check(scores, count);
  for (uint32_t stride : {17u, 18u, 19u}) {
    Shared<float> combed = random.Normals(tokens);
    for (uint32_t t = kSinkTokens; t < tokens; t += stride) combed[t] += 100;
    for (uint32_t count : {500u, 2000u, 4000u}) Check(combed, count);
    for (float& score : combed) score = -score;
    for (uint32_t count : {500u, 2000u, 4000u}) Check(combed, count);
  }
}

TEST_P(SelectTest, ItemsAndHeadsAreApart) {
  Random random(44);
  const uint32_t lengths[] = {500, 69, 1000};
  const uint32_t counts[] = {100, 69, 333};
  const uint32_t kv_heads = 3;
  const Shared<float> scores = random.Normals(3 * kv_heads * 1000);
  Output<uint32_t> got(3 * kv_heads * 400);
  Output<uint32_t> expected(got.size());
  for (Output<uint32_t>* out : {&got, &expected}) {
    std::vector<SelectArgs::Item> items;
    for (size_t i = 0; i < 3; ++i) {
      items.push_back({.scores = scores.data() + i * kv_heads * 1000,
                       .tokens = lengths[i],
                       .count = counts[i],
                       .selection = out->data() + i * kv_heads * 400});
    }
    (out == &got ? backend() : reference())
        .Select(
            {.kv_heads = kv_heads, .score_stride = 1000, .selection_stride = 400, .items = items});
  }
  EXPECT_TRUE(got.MarginsUntouched());
  ExpectSameBits(got.data(), expected.data(), got.size(), "selections and what lies between");
}

}  // namespace
}  // namespace sparsekv::testing
