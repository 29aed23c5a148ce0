#include <gtest/gtest.h>

#include <limits>
#include <utility>
#include <vector>

#include "kernels/test_cases.h"

namespace sparsekv::testing {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

class SelectTest : public BackendTest {
 protected:
  std::vector<uint32_t> Select(Backend& backend, const Shared<float>& scores, uint32_t count,
                               uint32_t first = 0) {
    Output<uint32_t> selection(count);
    const std::vector<SelectArgs::Item> items = {{.scores = scores.data(),
                                                  .tokens = static_cast<uint32_t>(scores.size()),
                                                  .count = count,
                                                  .selection = selection.data(),
                                                  .first = first}};
    backend.Select(
        {.kv_heads = 1, .score_stride = scores.size(), .selection_stride = count, .items = items});
    EXPECT_TRUE(selection.MarginsUntouched());
    return {selection.data(), selection.data() + count};
  }

  void Check(const Shared<float>& scores, uint32_t count, uint32_t first = 0) {
    EXPECT_EQ(Select(backend(), scores, count, first), Select(reference(), scores, count, first))
        << scores.size() << " tokens from " << first << ", " << count << " selected";
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

TEST_P(SelectTest, Windows) {
  if (cuda()) GTEST_SKIP() << "no windows on this backend";
  Random random(48);
  for (int round = 0; round < 100; ++round) {
    const uint32_t tokens = random.Between(1, round % 10 == 0 ? 30000 : 400);
    const uint32_t first = random.Between(0, random.Pick({std::min(6u, tokens - 1), tokens - 1}));
    const Shared<float> scores = random.Normals(tokens);
    Check(scores, random.Between(AlwaysSetSize(tokens, first), tokens - first), first);
  }
  // What is outside of the window is no sink, and no score makes it selected.
  Shared<float> scores(300, 9.0f);
  const std::vector<uint32_t> got = Select(backend(), scores, AlwaysSetSize(300, 150) + 2, 150);
  EXPECT_EQ(got[0], 150u);
  EXPECT_EQ(got[1], 151u);
  EXPECT_EQ(got[2], 300 - kRecentTokens - 1);
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

// Scores and the selection among them as one operation: as of the reference's two.
class ScoreThenSelectTest : public BackendTest {
 protected:
  enum class Values { kRandom, kFew, kSomeNan, kEqual };
  struct Case {
    uint32_t kv_heads = 1;
    uint32_t group = 1;
    uint32_t channels = 8;
    Pooling pooling = Pooling::kMaxNormalised;
    Values values = Values::kRandom;
    std::vector<uint32_t> lengths, counts;
    LabelFormat format = LabelFormat::kBf16;
    std::vector<uint32_t> firsts = {};  // of windows; empty: none
  };

  // Labels, queries and room for the results.
  struct Run {
    static constexpr uint32_t kDim = 64;

    Run(Random& random, const Case& test)
        : shape(test),
          longest(*std::max_element(test.lengths.begin(), test.lengths.end())),
          labels(test.kv_heads, test.channels, test.lengths, test.format),
          channels(Labels::Channels(random, test.kv_heads, kDim, test.channels)),
          q(random.Normals(test.lengths.size() * test.kv_heads * test.group * kDim)),
          scores(test.lengths.size() * test.kv_heads * stride()),
          selection(scores.size()) {
      for (uint32_t i = 0; i < test.lengths.size(); ++i) Fill(random, i);
      if (test.values == Values::kFew) {
        for (float& value : q) value = std::round(value);
      }
      if (test.values == Values::kSomeNan) q[random.Between(0, q.size() - 1)] = kNan;
    }

    size_t stride() const { return longest + 3; }

    void Fill(Random& random, uint32_t i) {
      const auto value = [&] {
        switch (shape.values) {
          case Values::kFew:
            return random.Pick({0.0f, -0.0f, 1.0f, -1.0f});
          case Values::kSomeNan:
            return random.Between(0, 50) == 0 ? kNan : random.Normal();
          case Values::kEqual:
            return 0.5f;
          default:
            return random.Normal();
        }
      };
      labels.FillWith(i, shape.lengths[i], value);
    }

    // f(score, select) of the first `tokens` tokens of each item.
    template <typename F>
    void Do(const std::vector<uint32_t>& tokens, const std::vector<uint32_t>& counts,
            Output<uint32_t>& to, const F& f) {
      std::vector<ScoreLabelsArgs::Item> score;
      std::vector<SelectArgs::Item> select;
      for (uint32_t i = 0; i < tokens.size(); ++i) {
        const size_t at = i * shape.kv_heads * stride();
        const uint32_t first = shape.firsts.empty() ? 0 : shape.firsts[i];
        score.push_back({i, tokens[i], labels.Table(i), scores.data() + at, first});
        select.push_back({scores.data() + at, tokens[i], counts[i], to.data() + at, first});
      }
      f(ScoreLabelsArgs{.q = q.data(),
                        .kv_heads = shape.kv_heads,
                        .group = shape.group,
                        .head_dim = kDim,
                        .channels = channels.data(),
                        .pooling = shape.pooling,
                        .score_stride = stride(),
                        .items = score},
        SelectArgs{.kv_heads = shape.kv_heads,
                   .score_stride = stride(),
                   .selection_stride = stride(),
                   .items = select});
    }

    // By the two operations of `on`.
    Output<uint32_t> Expected(Backend& on, const std::vector<uint32_t>& tokens,
                              const std::vector<uint32_t>& counts) {
      Output<uint32_t> expected(selection.size());
      Do(tokens, counts, expected, [&](const ScoreLabelsArgs& score, const SelectArgs& select) {
        on.ScoreLabels(score);
        on.Select(select);
      });
      return expected;
    }

    const Case shape;
    const uint32_t longest;
    Labels labels;
    Shared<uint16_t> channels;
    Shared<float> q;
    Output<float> scores;
    Output<uint32_t> selection;
  };

  static void ExpectSame(const Output<uint32_t>& got, const Output<uint32_t>& expected) {
    EXPECT_TRUE(got.MarginsUntouched());
    ExpectSameBits(got.data(), expected.data(), got.size(), "selections and what lies between");
  }

  void Check(Random& random, const Case& test) {
    SCOPED_TRACE(::testing::Message() << test.kv_heads << " heads, group " << test.group << ", "
                                      << test.channels << " channels of " << Name(test.format)
                                      << ", " << test.lengths.size() << " items");
    Run run(random, test);
    // A mass is the reference's up to rounding only.
    Backend& by = test.pooling == Pooling::kSoftmaxMass ? backend() : reference();
    const Output<uint32_t> expected = run.Expected(by, test.lengths, test.counts);
    for (StepKind kind : Kinds()) {
      Output<uint32_t> got(expected.size());
      run.Do(test.lengths, test.counts, got,
             [&](const ScoreLabelsArgs& score, const SelectArgs& select) {
               InStep(backend(), kind, [&] { backend().ScoreSelect(score, select); });
             });
      EXPECT_TRUE(run.scores.MarginsUntouched());
      ExpectSame(got, expected);
    }
  }

  static uint32_t AnyCount(Random& random, uint32_t tokens, uint32_t first = 0) {
    const uint32_t least = AlwaysSetSize(tokens, first);
    const uint32_t all = tokens - first;
    const uint32_t few = std::min(all, least + random.Between(0, 50));
    return random.Pick({least, all, few, few, random.Between(least, all)});
  }

  // Labels that make each token's score be value(token), which bfloat16 has, or a multiple of it.
  template <typename F>
  void CheckScores(Random& random, uint32_t tokens, uint32_t count, const F& value,
                   Case test = {.channels = 1, .pooling = Pooling::kSum}) {
    test.kv_heads = 3;
    test.lengths = {tokens};
    Run run(random, test);
    std::fill(run.q.begin(), run.q.end(), 1.0f);
    for (uint32_t h = 0; h < test.kv_heads; ++h) {
      for (uint32_t t = 0; t < tokens; ++t) {
        std::byte* labels = run.labels.Table(0).Head(h, t / kBlockTokens);
        for (uint32_t c = 0; c < test.channels; ++c) {
          StoreValue(labels, c * kBlockTokens + t % kBlockTokens, DType::kBF16, value(t));
        }
      }
    }
    Output<uint32_t> got(run.selection.size());
    run.Do({tokens}, {count}, got, [&](const ScoreLabelsArgs& score, const SelectArgs& select) {
      InStep(backend(), StepKind::kDecode, [&] { backend().ScoreSelect(score, select); });
    });
    ExpectSame(got, run.Expected(reference(), {tokens}, {count}));
  }
};
SPARSEKV_ON_EVERY_BACKEND(ScoreThenSelectTest);

TEST_P(ScoreThenSelectTest, AnyShape) {
  Random random(51);
  for (uint32_t round = 0; round < 80; ++round) {
    Case test{.kv_heads = random.Between(1, round % 8 == 0 ? 8 : 3),
              .group = random.Pick({1u, 2u, 4u, 4u, 8u, random.Between(1, 8), 11u}),
              .channels = random.Pick({8u, 8u, 4u, 16u, random.Between(1, 33)}),
              .pooling = random.Pick({Pooling::kMaxNormalised, Pooling::kSum}),
              .values = random.Pick({Values::kRandom, Values::kRandom, Values::kFew,
                                     Values::kSomeNan, Values::kEqual})};
    if (round % 10 == 9) test.pooling = Pooling::kSoftmaxMass;
    if (round % 2 == 1) test.format = kLabelFormats[random.Between(1, 3)];
    const uint32_t items = round % 13 == 12 ? 40 : random.Between(1, 6);
    for (uint32_t i = 0; i < items; ++i) {
      test.lengths.push_back(random.Pick({random.Between(1, 75), random.Between(70, 700),
                                          random.Between(70, round % 4 == 0 ? 5000 : 1500)}));
      test.counts.push_back(AnyCount(random, test.lengths.back()));
    }
    Check(random, test);
  }
}

TEST_P(ScoreThenSelectTest, NoItems) {
  const ScoreLabelsArgs score{.kv_heads = 2, .group = 1, .head_dim = 64};
  const SelectArgs select{.kv_heads = 2};
  InStep(backend(), StepKind::kDecode, [&] {
    backend().ScoreLabels(score);
    backend().Select(select);
    backend().ScoreSelect(score, select);
  });
}

// What is selected may end or begin where parts, pages and words of bits do.
TEST_P(ScoreThenSelectTest, EveryLengthAroundAPart) {
  Random random(52);
  const uint32_t lengths[] = {69,        70,        71,        128 + 65, 129 + 65,
                              1024 + 64, 1024 + 65, 1024 + 66, 2113};
  for (uint32_t length : lengths) {
    for (uint32_t group : {1u, 4u, 8u}) {
      for (LabelFormat format : {LabelFormat::kBf16, LabelFormat::kInt4}) {
        Check(random, {.group = group,
                       .lengths = {length, length + 1},
                       .counts = {std::min(length, 70u), std::min(length + 1, 80u)},
                       .format = format});
      }
    }
  }
}

TEST_P(ScoreThenSelectTest, LongRows) {
  Random random(53);
  Check(random, {.group = 4, .lengths = {131072}, .counts = {2048}});
  Check(random, {.kv_heads = 2, .group = 2, .lengths = {30000, 150001}, .counts = {15000, 300}});
  Check(random, {.kv_heads = 17, .lengths = {9000}, .counts = {600}});
  Check(random, {.group = 4,
                 .channels = 16,
                 .lengths = {131072},
                 .counts = {2048},
                 .format = LabelFormat::kInt4});
  if (!cuda()) return;
  for (LabelFormat format : {LabelFormat::kInt8, LabelFormat::kInt4, LabelFormat::kInt2}) {
    Check(random, {.kv_heads = 3,
                   .group = 8,
                   .channels = 16,
                   .lengths = {131073, 20000, 70000, 500},
                   .counts = {2048, 100, 69999, 400},
                   .format = format});
    Check(random, {.group = 4, .lengths = {200003}, .counts = {3000}, .format = format});
    Check(random,
          {.group = 1, .channels = 48, .lengths = {400001}, .counts = {399000}, .format = format});
    Check(random, {.group = 9,
                   .channels = 32,
                   .values = Values::kFew,
                   .lengths = {181111, 400},
                   .counts = {5000, 69},
                   .format = format});
  }
  // Fewer and more CTAs to a row; keys beyond those that shared memory holds.
  Check(random, {.kv_heads = 3,
                 .group = 4,
                 .lengths = {131073, 20000, 70000, 500},
                 .counts = {2048, 100, 69999, 400}});
  Check(random, {.group = 4, .channels = 12, .lengths = {200003}, .counts = {3000}});
  Check(random, {.group = 1, .channels = 4, .lengths = {400001}, .counts = {399000}});
  Check(random, {.group = 9,
                 .channels = 4,
                 .values = Values::kFew,
                 .lengths = {181111, 400},
                 .counts = {5000, 69}});
}

TEST_P(ScoreThenSelectTest, Windows) {
  if (cuda()) GTEST_SKIP() << "no windows on this backend";
  Random random(55);
  for (uint32_t round = 0; round < 20; ++round) {
    Case test{.kv_heads = random.Between(1, 3), .group = random.Between(1, 4)};
    for (uint32_t i = 0; i < 3; ++i) {
      const uint32_t tokens = random.Between(1, round % 5 == 0 ? 20000 : 1500);
      test.lengths.push_back(tokens);
      test.firsts.push_back(random.Between(0, random.Pick({std::min(6u, tokens - 1), tokens - 1})));
      test.counts.push_back(AnyCount(random, tokens, test.firsts.back()));
    }
    Check(random, test);
  }
}

// Pages of high scores that lie in any step with those that a sample looks at, so that it sees all
// of them or none; and scores that rise or fall, or tie, all along.
TEST_P(ScoreThenSelectTest, ScoresThatASampleMisjudges) {
  Random random(56);
  const uint32_t tokens = (1 + 8 * 32) * kBlockTokens + kRecentTokens + 1;
  for (uint32_t count : {300u, 2000u, 3000u}) {
    for (uint32_t period : {7u, 8u, 9u}) {
      for (uint32_t step = 0; step < (slow() ? 2 : period); ++step) {
        CheckScores(random, tokens, count,
                    [&](uint32_t t) { return t / kBlockTokens % period == step ? 2.0f : 1.0f; });
      }
    }
    const auto height = [](uint32_t t) { return static_cast<float>(t / 80); };
    CheckScores(random, tokens, count, height);
    CheckScores(random, tokens, count, [&](uint32_t t) { return -height(t); });
    CheckScores(random, tokens, count, [](uint32_t) { return 0.0f; });
    CheckScores(random, tokens, count, [](uint32_t t) { return t % 3 ? 1.0f : kInfinity; });
    CheckScores(random, tokens, count, [](uint32_t t) { return t % 3 ? -kInfinity : 1.0f; });
    // What a sample sees lies above all numbers that are wanted besides, and NaN ranks below those.
    CheckScores(random, tokens, count, [](uint32_t t) {
      if (t / kBlockTokens % 8 == 1 && t % kBlockTokens < 2) return 2.0f;
      return t % 2 ? std::numeric_limits<float>::quiet_NaN() : 1.0f;
    });
  }
}

// Rows of which one CTA scores more tokens than it keeps, and again and again drops what so many
// are ahead of as are selected.
TEST_P(ScoreThenSelectTest, PartsOfMoreTokensThanAreKept) {
  if (!cuda()) GTEST_SKIP() << "no parts on this backend";
  Random random(57);
  for (Values values : {Values::kRandom, Values::kFew, Values::kSomeNan, Values::kEqual}) {
    for (uint32_t group : {1u, 4u, 8u}) {
      // So many rows that each has a CTA of its own, but for group 4, of which too many are
      // selected.
      Case test{.kv_heads = 8, .group = group, .channels = 4, .values = values};
      if (values == Values::kFew && group > 1) test.format = LabelFormat::kInt8;
      if (values == Values::kEqual && group > 1) test.format = LabelFormat::kInt2;
      for (uint32_t i = 0; i < 34; ++i) {
        test.lengths.push_back(random.Between(i % 2 ? 70 : 14000, 24000));
        const uint32_t least = AlwaysSetSize(test.lengths.back());
        const uint32_t most = std::min(test.lengths.back(), group == 4 ? 14000u : 8000u);
        test.counts.push_back(
            random.Pick({least + 1, std::min(most, 2048u), most, random.Between(least, most)}));
      }
      Check(random, test);
    }
  }
  for (auto [tokens, count] :
       {std::pair(320001u, 300u), {320001, 8100}, {320001, 8773}, {16 * 65536, 2000}}) {
    const auto height = [](uint32_t t) { return static_cast<float>(t / 80); };
    CheckScores(random, tokens, count, height);
    CheckScores(random, tokens, count, [&](uint32_t t) { return -height(t); });
    CheckScores(random, tokens, count, [&](uint32_t t) { return height(t % 9973); });
    CheckScores(random, tokens, count, [](uint32_t) { return 0.0f; });
    CheckScores(random, tokens, count, [](uint32_t t) { return t % 3 ? 1.0f : kInfinity; });
    CheckScores(random, tokens, count, [](uint32_t t) { return t % 3 ? -kInfinity : 1.0f; });
  }
  // The longest parts.
  for (LabelFormat format : {LabelFormat::kBf16, LabelFormat::kInt4}) {
    Check(random, {.kv_heads = 1,
                   .group = 4,
                   .channels = 4,
                   .lengths = {16 * 131072 - 12345},
                   .counts = {2048},
                   .format = format});
  }
  // More selected than there is room for, and rows longer than all CTAs of a cluster take.
  Check(random, {.group = 4, .lengths = {240000, 1000}, .counts = {20000, 300}});
  Check(random, {.group = 4, .channels = 4, .lengths = {16 * 131072 + 65}, .counts = {2048}});
}

// Scores are high where a sample is taken, in the middle of 32 equal steps, and nowhere else
// (kernels/cuda/score_select_sample.cuh): fewer are than 6,000. And where they are not. The last
// part of the shorter row has room for all its keys.
TEST_P(ScoreThenSelectTest, SamplesThatMislead) {
  if (!cuda()) GTEST_SKIP() << "no samples on this backend";
  Random random(58);
  for (uint32_t tokens : {320001u, 400000u}) {
    const uint32_t pages = (tokens - kRecentTokens - 1) / kBlockTokens;
    std::vector<bool> sampled(pages + 2);
    for (uint32_t i = 0; i < 32; ++i) sampled[pages * (2 * i + 1) / 64] = true;
    const auto high = [&](uint32_t t) {
      return (sampled[t / kBlockTokens] ? 2.0f : 0.0f) + static_cast<float>(t % 7) / 8.0f;
    };
    CheckScores(random, tokens, 6000, high);
    for (uint32_t group : {1u, 8u}) {
      CheckScores(random, tokens, 6000, high, {.group = group, .channels = 4});
    }
    CheckScores(random, tokens, 300, [&](uint32_t t) { return -high(t); });
  }
}

// The same step with other lengths; in it the operation twice.
TEST_P(ScoreThenSelectTest, ADecodeStepComesAgain) {
  Random random(54);
  for (uint32_t kv_heads : {2u, 5u}) {
    Run run(random, {.kv_heads = kv_heads,
                     .group = 4,
                     .lengths = {3000, 900, 5000, 70},
                     .format = kv_heads == 2 ? LabelFormat::kBf16 : LabelFormat::kInt4});
    for (uint32_t round = 0; round < 6; ++round) {
      std::vector<uint32_t> tokens[2], counts[2];
      for (auto i : {0, 1}) {
        for (uint32_t length : run.shape.lengths) {
          tokens[i].push_back(random.Between(1, length));
          counts[i].push_back(AnyCount(random, tokens[i].back()));
        }
      }
      const auto expect = [&](Backend& on) {
        Output<uint32_t> got[] = {Output<uint32_t>(run.selection.size()),
                                  Output<uint32_t>(run.selection.size())};
        InStep(on, StepKind::kDecode, [&] {
          for (auto i : {0, 1}) {
            run.Do(tokens[i], counts[i], got[i],
                   [&](const ScoreLabelsArgs& score, const SelectArgs& select) {
                     on.ScoreSelect(score, select);
                   });
          }
        });
        for (auto i : {0, 1}) {
          ExpectSame(got[i], run.Expected(reference(), tokens[i], counts[i]));
        }
      };
      expect(backend());
      expect(other());
    }
  }
}

}  // namespace
}  // namespace sparsekv::testing
