// Every policy against the slow form of its paper's rule (slow_policies.h), over random cases.
#include "cli/eval/policies/policies.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "cli/eval/policies/label_store.h"
#include "cli/eval/policies/policy_spec.h"
#include "cli/eval/policies/scores.h"
#include "cli/eval/policies/slow_policies.h"
#include "cli/recall/seeded_random.h"
#include "kernels/half.h"

namespace sparsekv {
namespace {

using slow::Matrix;
using slow::Rows;
using slow::Vector;

constexpr int kCases = 60;

// A head with a prompt, and steps after it.
struct Case {
  explicit Case(uint64_t seed) : random(seed, 5) {
    shape.head_dim = 8 * (1 + static_cast<uint32_t>(random.Below(4)));
    shape.group = 1 + static_cast<uint32_t>(random.Below(4));
    shape.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
    prompt = 20 + static_cast<uint32_t>(random.Below(200));
    history.emplace(shape.head_dim, prompt + 64);
    for (uint32_t t = 0; t < prompt; ++t) AddKey();
  }

  std::vector<float> Draw(uint32_t rows) {
    std::vector<float> values(size_t{rows} * shape.head_dim);
    for (float& x : values) x = static_cast<float>(random.Normal());
    return values;
  }
  void AddKey() {
    const auto key = Draw(1);
    keys.emplace_back(key.begin(), key.end());
    history->Append(key.data());
    static constexpr TokenKind kKinds[] = {TokenKind::kOther, TokenKind::kOther, TokenKind::kOther,
                                           TokenKind::kSpecial, TokenKind::kPunctuation};
    kinds.push_back(kKinds[random.Below(keys.size() < 3 ? 4 : 5)]);
  }
  Matrix Queries(const std::vector<float>& q) const {
    Matrix rows;
    for (uint32_t h = 0; h < shape.group; ++h) {
      const auto from = q.begin() + h * shape.head_dim;
      rows.emplace_back(from, from + shape.head_dim);
    }
    return rows;
  }
  uint32_t tokens() const { return static_cast<uint32_t>(keys.size()); }
  uint32_t DrawCount(uint32_t least) {
    return least + static_cast<uint32_t>(random.Below(prompt - least + 1));
  }
  HeadSelection Select(HeadPolicy& policy, const std::vector<float>& q, uint32_t count) {
    HeadSelection selection;
    policy.Select({.q = q.data(), .keys = &*history, .rows = count}, &selection);
    return selection;
  }
  PromptStatistics Prompt() {
    return {.keys = &*history, .attention = attention, .last_attention = maps, .kinds = &kinds};
  }

  SeededRandom random;
  HeadShape shape;
  uint32_t prompt = 0;
  Matrix keys;
  std::optional<KeyHistory> history;
  std::vector<TokenKind> kinds;
  std::vector<float> attention;
  std::vector<std::vector<float>> maps;
};

TEST(Policies, OracleTakesTheMostAttended) {
  for (int i = 0; i < kCases; ++i) {
    Case c(i);
    const auto q = c.Draw(c.shape.group);
    const uint32_t count = c.DrawCount(1);
    auto policy = MakeOracle(c.shape);
    policy->Begin(c.Prompt());
    EXPECT_EQ(c.Select(*policy, q, count).rows, slow::Oracle(c.Queries(q), c.keys, count)) << i;
  }
}

TEST(Policies, DoubleSparsityRanksByLabels) {
  for (int i = 0; i < kCases; ++i) {
    Case c(i);
    const uint32_t r = 2 + static_cast<uint32_t>(c.random.Below(c.shape.head_dim - 2));
    std::vector<uint16_t> channels(c.shape.head_dim);
    for (uint16_t n = 0; n < channels.size(); ++n) channels[n] = n;
    c.random.Shuffle(channels);
    channels.resize(r);
    // Labels are bf16: the slow form sees the keys so rounded.
    Matrix rounded = c.keys;
    for (Vector& key : rounded) {
      for (double& x : key) x = FromBf16(ToBf16(static_cast<float>(x)));
    }
    const AlwaysRows always = {static_cast<uint32_t>(c.random.Below(6)),
                               static_cast<uint32_t>(c.random.Below(10))};
    const uint32_t count = c.DrawCount(16);
    const auto q = c.Draw(c.shape.group);
    auto policy = MakeDoubleSparsity(c.shape, {.channels = channels, .always = always});
    policy->Begin(c.Prompt());
    const HeadSelection got = c.Select(*policy, q, count);
    EXPECT_EQ(got.rows,
              slow::DoubleSparsity(c.Queries(q), rounded, {channels.begin(), channels.end()}, count,
                                   always.sinks, always.recent))
        << i;
    EXPECT_EQ(got.index_bytes, size_t{2} * r * c.tokens());
  }
}

// However many rows an adaptive layer takes: they are the best by labels, and in the mean of the
// steps they hold what was asked for.
TEST(Policies, AdaptiveTakesTheBestByLabels) {
  for (int i = 0; i < kCases / 4; ++i) {
    Case c(i);
    const uint32_t r = c.shape.head_dim / 2;
    std::vector<uint16_t> channels(r);
    for (uint16_t n = 0; n < r; ++n) channels[n] = 2 * n;
    const DoubleSparsityOptions options = {.channels = channels};
    const double target = 0.6 + 0.05 * (i % 6);
    auto heads = MakeAdaptive({&c.shape, 1}, {&options, 1}, target);
    heads[0]->Begin(c.Prompt());
    double held = 0;
    constexpr int kSteps = 40;
    for (int step = 0; step < kSteps; ++step) {
      c.AddKey();
      const auto q = c.Draw(c.shape.group);
      heads[0]->Look({.q = q.data(), .keys = &*c.history, .rows = c.tokens()});
      const HeadSelection got = c.Select(*heads[0], q, c.tokens());
      Matrix rounded = c.keys;
      for (Vector& key : rounded) {
        for (double& x : key) x = FromBf16(ToBf16(static_cast<float>(x)));
      }
      const auto count = static_cast<uint32_t>(got.rows.size());
      ASSERT_GE(count, std::min(c.tokens(), kSinkTokens + kRecentTokens + 1));
      EXPECT_EQ(got.rows,
                slow::DoubleSparsity(c.Queries(q), rounded, {channels.begin(), channels.end()},
                                     count, kSinkTokens, kRecentTokens + 1))
          << i;
      const Vector attention = slow::Attention(c.Queries(q), c.keys, slow::All(c.tokens()));
      for (uint32_t row : got.rows) held += attention[row] / kSteps;
    }
    EXPECT_GT(held, target - 0.05) << i;
  }
}

// Uncorrected: what the prediction says of the tokens before the current one, and that.
TEST(Policies, UncorrectedOffloadAttendsThePrediction) {
  for (int i = 0; i < kCases; ++i) {
    Case c(i);
    std::vector<uint16_t> channels = {0, 3, 5, 6};
    Matrix rounded = c.keys;
    for (Vector& key : rounded) {
      for (double& x : key) x = FromBf16(ToBf16(static_cast<float>(x)));
    }
    rounded.pop_back();
    const uint32_t count = c.DrawCount(16);
    const auto q = c.Draw(c.shape.group), predicted = c.Draw(c.shape.group);
    auto policy = MakeDoubleSparsity(
        c.shape, {.channels = channels, .offload = true, .corrected = false, .always = {2, 3}});
    policy->Begin(c.Prompt());
    HeadSelection got;
    policy->Select(
        {.q = q.data(), .predicted = predicted.data(), .keys = &*c.history, .rows = count}, &got);
    Rows wanted =
        slow::DoubleSparsity(c.Queries(predicted), rounded, {0, 3, 5, 6}, count - 1, 2, 3);
    wanted.push_back(c.tokens() - 1);
    EXPECT_EQ(got.rows, wanted) << i;
  }
}

TEST(Policies, StreamingKeepsSinksAndWindow) {
  for (int i = 0; i < kCases; ++i) {
    Case c(i);
    const uint32_t count = c.DrawCount(8);
    const auto q = c.Draw(c.shape.group);
    auto policy = MakeStreaming(4, SinkDistance::kCache);
    const HeadSelection got = c.Select(*policy, q, count);
    EXPECT_EQ(got.rows, slow::StreamingLlm(c.tokens(), count, 4));
    for (uint32_t n = 0; n < count; ++n) EXPECT_EQ(got.distances[n], count - 1 - n);
    const HeadSelection far = c.Select(*MakeStreaming(4, SinkDistance::kCeiling), q, count);
    for (uint32_t n = 0; n < count; ++n) {
      EXPECT_EQ(far.distances[n], std::min(c.tokens() - 1 - far.rows[n], count - 1));
    }
  }
}

TEST(Policies, WindowIsDilated) {
  Case c(1);
  const auto q = c.Draw(c.shape.group);
  const uint32_t last = c.tokens() - 1;
  EXPECT_EQ(c.Select(*MakeWindow(2, 3), q, 5).rows, (Rows{0, 1, last - 6, last - 3, last}));
  EXPECT_EQ(c.Select(*MakeWindow(0, 1), q, 3).rows, (Rows{last - 2, last - 1, last}));
}

TEST(Policies, SparqReadsTheLargestOfTheQuery) {
  for (int i = 0; i < kCases; ++i) {
    Case c(i);
    const uint32_t r = 1 + static_cast<uint32_t>(c.random.Below(c.shape.head_dim));
    const uint32_t count = c.DrawCount(4);
    const auto q = c.Draw(c.shape.group);
    auto policy = MakeSparq(c.shape, {.channels = r});
    const HeadSelection got = c.Select(*policy, q, count);
    Vector share;
    EXPECT_EQ(got.rows,
              slow::Sparq(c.Queries(q), c.keys, r, count, std::max(count / 4, 1u), &share))
        << i;
    ASSERT_EQ(got.share.size(), share.size());
    for (size_t h = 0; h < share.size(); ++h) EXPECT_NEAR(got.share[h], share[h], 1e-5);
  }
}

TEST(Policies, QuestRanksPagesByTheirBounds) {
  for (int i = 0; i < kCases; ++i) {
    Case c(i);
    const uint32_t page = 1 + static_cast<uint32_t>(c.random.Below(20));
    auto policy = MakeQuest(c.shape, {.page = page});
    policy->Begin(c.Prompt());
    for (int step = 0; step < 5; ++step) {
      const uint32_t count = c.DrawCount(1);
      const auto q = c.Draw(c.shape.group);
      EXPECT_EQ(c.Select(*policy, q, count).rows, slow::Quest(c.Queries(q), c.keys, page, count))
          << i;
      c.AddKey();
    }
  }
}

TEST(Policies, H2oEvictsWhatReceivedLeast) {
  for (int i = 0; i < kCases; ++i) {
    Case c(i);
    for (uint32_t t = 0; t < c.prompt; ++t) {
      c.attention.push_back(static_cast<float>(c.random.Below(1000)) / 100);
    }
    slow::H2o slow{slow::All(c.prompt), {c.attention.begin(), c.attention.end()}};
    auto policy = MakeH2o(c.shape, 0.5);
    policy->Begin(c.Prompt());
    const uint32_t count = c.DrawCount(4);
    for (uint32_t step = 0; step < 20; ++step) {
      c.AddKey();
      const auto q = c.Draw(c.shape.group);
      ASSERT_EQ(c.Select(*policy, q, count).rows, slow.Step(c.Queries(q), c.keys, count))
          << i << " step " << step;
    }
  }
}

TEST(Policies, ScissorhandsDropsWhatWasLowMostOften) {
  for (int i = 0; i < kCases; ++i) {
    Case c(i);
    const ScissorhandsOptions options = {1 + static_cast<uint32_t>(c.random.Below(30)),
                                         static_cast<uint32_t>(c.random.Below(6)),
                                         0.1 * static_cast<double>(1 + c.random.Below(8))};
    slow::Scissorhands slow{options.history, options.recent, options.drop, slow::All(c.prompt), {}};
    for (uint32_t n = 0; n < 10; ++n) {
      const auto q = c.Draw(c.shape.group);
      const Rows present = slow::All(c.prompt - 9 + n);
      const Vector attention = slow::Attention(c.Queries(q), c.keys, present);
      c.maps.emplace_back(attention.begin(), attention.end());
      slow.Remember(attention, present, c.prompt);
    }
    auto policy = MakeScissorhands(c.shape, options);
    policy->Begin(c.Prompt());
    const uint32_t count = c.DrawCount(6);
    for (uint32_t step = 0; step < 30; ++step) {
      c.AddKey();
      const auto q = c.Draw(c.shape.group);
      ASSERT_EQ(c.Select(*policy, q, count).rows, slow.Step(c.Queries(q), c.keys, count))
          << i << " step " << step;
    }
  }
}

TEST(Policies, FastGenTakesTheCheapestCacheThatRecovers) {
  std::set<size_t> sizes;
  for (int i = 0; i < kCases; ++i) {
    Case c(i);
    Matrix maps;
    for (uint32_t n = 0; n < 6; ++n) {
      const auto q = c.Draw(c.shape.group);
      maps.push_back(slow::Attention(c.Queries(q), c.keys, slow::All(c.prompt - 5 + n)));
      c.maps.emplace_back(maps.back().begin(), maps.back().end());
    }
    const double recovery = 0.15 + 0.8 * static_cast<double>(c.random.Below(100)) / 100;
    auto policy = MakeFastGen(recovery);
    policy->Begin(c.Prompt());
    const uint32_t count = c.DrawCount(4);
    for (uint32_t step = 0; step < 3; ++step) {
      c.AddKey();
      const auto q = c.Draw(c.shape.group);
      std::vector<int> kinds;
      for (TokenKind kind : c.kinds) kinds.push_back(static_cast<int>(kind));
      const Rows wanted = slow::FastGen(kinds, maps, c.tokens(), count, recovery);
      EXPECT_EQ(c.Select(*policy, q, count).rows, wanted) << i;
      sizes.insert(wanted.size());
    }
  }
  EXPECT_GT(sizes.size(), 10u);
}

TEST(Policies, RandomForcesItsRowsAndDrawsTheRest) {
  Case c(3);
  const auto q = c.Draw(c.shape.group);
  auto policy = MakeRandom(c.shape, {2, 3}, 7);
  const Rows once = c.Select(*policy, q, 12).rows;
  EXPECT_EQ(once, c.Select(*policy, q, 12).rows);
  EXPECT_EQ(once.size(), 12u);
  EXPECT_EQ(once[1], 1u);
  EXPECT_EQ(once[9], c.tokens() - 3);
  c.AddKey();
  EXPECT_NE(once, c.Select(*policy, q, 12).rows);
}

// Fewer bits, less like the exact labels; 8 are nearly those.
TEST(Policies, LabelsOfFewBits) {
  Case c(4);
  std::vector<uint16_t> channels = {0, 1, 2, 3, 4, 5, 6, 7};
  const auto q = c.Draw(c.shape.group);
  const auto rows = [&](uint32_t bits) {
    auto policy =
        MakeDoubleSparsity(c.shape, {.channels = channels, .bits = bits, .always = {0, 0}});
    policy->Begin(c.Prompt());
    const HeadSelection got = c.Select(*policy, q, 10);
    EXPECT_EQ(got.index_bytes, c.tokens() * (8 * bits / 8 + (bits == 16 ? 0 : 4)));
    return got.rows;
  };
  const Rows exact = rows(16), fine = rows(8);
  Rows common;
  std::ranges::set_intersection(exact, fine, std::back_inserter(common));
  EXPECT_GE(common.size(), 9u);
  EXPECT_NE(exact, rows(2));
}

// Labels that the config codes are the worker's: its scores, one number after the other, its bytes.
TEST(Policies, CodedLabelsScoreAsTheWorkers) {
  SeededRandom random(6, 2);
  for (LabelFormat format : {LabelFormat::kInt8, LabelFormat::kInt4, LabelFormat::kInt2}) {
    for (uint32_t channels : {1u, 7u, 16u, 33u, 256u}) {
      const auto draw = [&] {
        std::vector<float> values(channels);
        for (float& x : values) x = static_cast<float>(random.Normal());
        return values;
      };
      LabelStore store(format, channels, 50);
      for (int t = 0; t < 50; ++t) store.Append(draw());
      store.Truncate(20);
      const auto query = draw();
      const CodedQuery asked = CodeQuery(query);
      std::vector<float> wanted, scores(50);
      for (int t = 0; t < 50; ++t) {
        const auto label = draw();
        if (t >= 20) store.Append(label);
        const CodedLabel coded = CodeLabel(format, label);
        const uint32_t bits = CodeBits(format);
        int32_t dot = 0;
        for (uint32_t c = 0; c < channels; ++c) {
          const uint32_t at = c * bits;
          dot += asked.codes[c] *
                 static_cast<int32_t>(coded.words[at / 32] >> at % 32 & ((1u << bits) - 1));
        }
        wanted.push_back(
            CodedScore(asked.unit, asked.sum, FromF16(coded.step), FromF16(coded.least), dot));
      }
      store.Score(query, 50, scores.data());
      EXPECT_EQ(std::vector<float>(scores.begin() + 20, scores.end()),
                std::vector<float>(wanted.begin() + 20, wanted.end()))
          << Name(format) << " " << channels;
    }
  }
}

// A query of few bits chooses as if it had come so.
TEST(Policies, QueriesOfFewBits) {
  Case c(4);
  const std::vector<uint16_t> channels = {1, 3, 4, 6};
  const auto q = c.Draw(c.shape.group);
  const auto rows = [&](const std::vector<float>& query, uint32_t bits) {
    auto policy = MakeDoubleSparsity(
        c.shape,
        {.channels = channels, .pooling = Pooling::kSum, .query_bits = bits, .always = {0, 0}});
    policy->Begin(c.Prompt());
    return c.Select(*policy, query, 10).rows;
  };
  std::vector<float> rounded = q;
  for (uint32_t h = 0; h < c.shape.group; ++h) {
    float* head = rounded.data() + size_t{h} * c.shape.head_dim;
    float low = head[1], high = head[1];
    for (uint16_t channel : channels) {
      low = std::min(low, head[channel]);
      high = std::max(high, head[channel]);
    }
    const float step = (high - low) / 3;
    for (uint16_t channel : channels) {
      head[channel] = low + std::round((head[channel] - low) / step) * step;
    }
  }
  EXPECT_EQ(rows(q, 2), rows(rounded, 16));
  EXPECT_NE(rows(q, 2), rows(q, 16));
}

TEST(PolicySpec, OneErrorForEachBadText) {
  for (const auto& [text, part] : std::vector<std::pair<std::string, std::string>>{
           {"quick", "is not one of"},
           {"quest:pages=2", "\"pages=2\" is not a parameter of quest (page, dense-layers)"},
           {"quest:page=0", "page \"0\" is not a whole number in 1..4096"},
           {"quest:page=1.5", "page \"1.5\" is not a whole number"},
           {"h2o:recent=2", "recent \"2\" is not a number in 0..1"},
           {"double-sparsity:bits=3", "bits \"3\" is not one of config, 16, 8, 4, 2"},
           {"double-sparsity:from=", "\"from=\" is not a parameter"},
           {"quest:from=x", "\"from=x\" is not a parameter of quest (page, dense-layers)"},
           {"dense:x=1", "(it has none)"},
           {"quest:", "\"\" is not a parameter"}}) {
    const auto spec = PolicySpec::Parse(text);
    ASSERT_FALSE(spec.ok()) << text;
    EXPECT_NE(std::string(spec.status().message()).find(part), std::string::npos) << spec.status();
  }
  EXPECT_TRUE(PolicySpec::Parse("double-sparsity:bits=4,channels=8,pooling=sum,sinks=0").ok());
  EXPECT_EQ(PolicySpec::Parse("double-sparsity:from=mine,bits=4")->channel_set(), "mine");
}

}  // namespace
}  // namespace sparsekv
