#include <gtest/gtest.h>

#include <set>

#include "kernels/test_cases.h"

namespace sparsekv::testing {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

class SampleTest : public BackendTest {
 protected:
  static SampledToken Draw(Backend& backend, const Shared<float>& logits, SampleParams params,
                           uint32_t position = 0, uint32_t top_logprobs = 0) {
    return backend.Sample({.logits = logits.data(),
                           .vocab = static_cast<uint32_t>(logits.size()),
                           .position = position,
                           .params = params,
                           .top_logprobs = top_logprobs});
  }

  void Check(const Shared<float>& logits, SampleParams params, uint32_t position) {
    const SampledToken got = Draw(backend(), logits, params, position, 5);
    const SampledToken expected = Draw(reference(), logits, params, position, 5);
    EXPECT_EQ(got.id, expected.id)
        << "temperature " << params.temperature << " top_k " << params.top_k << " top_p "
        << params.top_p << " position " << position;
    EXPECT_NEAR(got.logprob, expected.logprob, 1e-4f);
    ASSERT_EQ(got.top.size(), expected.top.size());
    for (size_t i = 0; i < got.top.size(); ++i) {
      EXPECT_EQ(got.top[i].first, expected.top[i].first);
      EXPECT_NEAR(got.top[i].second, expected.top[i].second, 1e-4f);
    }
  }
};
SPARSEKV_ON_EVERY_BACKEND(SampleTest);

TEST_P(SampleTest, GreedyTakesTheFirstOfTheHighest) {
  EXPECT_EQ(Draw(backend(), {1.0f, 3.0f, 2.0f, 3.0f}, {}).id, 1u);
  Random random(51);
  for (uint32_t vocab : {1u, 2u, 17u, 5000u}) Check(random.Normals(vocab, 3.0f), {}, 0);
}

TEST_P(SampleTest, AgreesWithTheReference) {
  Random random(52);
  for (int round = 0; round < 60; ++round) {
    const Shared<float> logits =
        random.Normals(random.Between(1, round % 6 == 0 ? 5000 : 300), 3.0f);
    const SampleParams params{.temperature = random.Pick({0.3f, 1.0f, 2.5f}),
                              .top_p = random.Pick({1.0f, 0.9f, 0.3f, 0.0f}),
                              .top_k = random.Pick({0u, 1u, 5u, 40u, 100000u}),
                              .seed = random.Between(0, 1000)};
    Check(logits, params, random.Between(0, 1000));
  }
}

TEST_P(SampleTest, DrawsFollowTheDistribution) {
  const Shared<float> logits = {std::log(0.5f), std::log(0.2f), std::log(0.3f)};
  int counts[3] = {};
  for (uint32_t position = 0; position < 20000; ++position) {
    ++counts[Draw(backend(), logits, {.temperature = 1.0f, .seed = 7}, position).id];
  }
  EXPECT_NEAR(counts[0] / 20000.0, 0.5, 0.015);
  EXPECT_NEAR(counts[1] / 20000.0, 0.2, 0.015);
  EXPECT_NEAR(counts[2] / 20000.0, 0.3, 0.015);
}

TEST_P(SampleTest, TopKAndTopPKeepTheObviousSets) {
  Random random(53);
  Shared<float> logits = random.Normals(1000, 2.0f);
  std::vector<uint32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(),
            [&](uint32_t a, uint32_t b) { return logits[a] > logits[b]; });
  double mass = 0;
  for (float logit : logits) mass += std::exp(double{logit});
  std::set<uint32_t> nucleus;
  double reached = 0;
  for (size_t i = 0; reached < 0.25 * mass; ++i) {
    reached += std::exp(double{logits[order[i]]});
    nucleus.insert(order[i]);
  }
  std::set<uint32_t> by_k;
  std::set<uint32_t> by_p;
  for (uint32_t position = 0; position < 4000; ++position) {
    by_k.insert(Draw(backend(), logits, {.temperature = 1.0f, .top_k = 3}, position).id);
    by_p.insert(Draw(backend(), logits, {.temperature = 1.0f, .top_p = 0.25f}, position).id);
  }
  EXPECT_EQ(by_k, std::set<uint32_t>(order.begin(), order.begin() + 3));
  EXPECT_EQ(by_p, nucleus);
}

TEST_P(SampleTest, ADrawDependsOnSeedAndPositionOnly) {
  Random random(54);
  const Shared<float> logits = random.Normals(5000);
  const SampleParams params{.temperature = 1.0f, .seed = 99};
  const uint32_t first = Draw(backend(), logits, params, 5).id;
  std::set<uint32_t> others;
  for (uint32_t position = 0; position < 50; ++position) {
    others.insert(Draw(backend(), logits, params, position).id);
  }
  EXPECT_GT(others.size(), 40u);
  EXPECT_EQ(Draw(backend(), logits, params, 5).id, first);
}

TEST_P(SampleTest, SeveralAtOnceAreThoseOneByOne) {
  Random random(56);
  const uint32_t vocab = 1500;
  const Shared<float> logits = random.Normals(size_t{17} * vocab, 3.0f);
  std::vector<SampleArgs> args;
  for (uint32_t i = 0; i < 17; ++i) {
    args.push_back({.logits = logits.data() + i * vocab,
                    .vocab = vocab,
                    .position = random.Between(0, 1000),
                    .params = {.temperature = random.Pick({0.0f, 0.8f, 2.0f}),
                               .top_p = random.Pick({1.0f, 0.9f}),
                               .top_k = random.Pick({0u, 40u}),
                               .seed = i},
                    .top_logprobs = random.Pick({0u, 1u, kMaxTopLogprobs})});
  }
  std::vector<SampledToken> outside(args.size()), inside(args.size());
  backend().Sample(args, outside.data());
  InStep(backend(), StepKind::kDecode, [&] { backend().Sample(args, inside.data()); });
  for (size_t i = 0; i < args.size(); ++i) {
    const SampledToken alone = backend().Sample(args[i]);
    for (const SampledToken& got : {outside[i], inside[i]}) {
      EXPECT_EQ(got.id, alone.id);
      EXPECT_EQ(got.logprob, alone.logprob);
      EXPECT_EQ(got.top, alone.top);
    }
    EXPECT_EQ(alone.id, reference().Sample(args[i]).id);
  }
}

TEST_P(SampleTest, DamagedLogitsDoNoHarm) {
  Random random(55);
  Shared<float> some = random.Normals(100);
  some[3] = kNan;
  some[50] = -kInfinity;
  Shared<float> infinite = random.Normals(100);
  infinite[40] = infinite[60] = kInfinity;
  const Shared<float> cases[] = {some, infinite, Shared<float>(37, kNan),
                                 Shared<float>(37, -kInfinity)};
  for (const Shared<float>& logits : cases) {
    for (float temperature : {0.0f, 0.7f, 1e-30f}) {
      for (uint32_t top_k : {0u, 4u}) {
        for (float top_p : {1.0f, 0.5f}) {
          const SampleParams params{.temperature = temperature, .top_p = top_p, .top_k = top_k};
          const uint32_t id = Draw(backend(), logits, params, 3, 5).id;
          ASSERT_LT(id, logits.size());
          EXPECT_EQ(id, Draw(reference(), logits, params, 3, 5).id);
        }
      }
    }
  }
}

TEST(UniformTest, SpreadsOverTheUnitInterval) {
  int buckets[10] = {};
  for (uint64_t seed = 0; seed < 100; ++seed) {
    for (uint32_t position = 0; position < 100; ++position) {
      const double uniform = UniformFor(seed, position);
      ASSERT_GE(uniform, 0.0);
      ASSERT_LT(uniform, 1.0);
      ++buckets[static_cast<int>(uniform * 10)];
    }
  }
  for (int count : buckets) EXPECT_NEAR(count, 1000, 150);
  EXPECT_NE(UniformFor(1, 2), UniformFor(2, 1));
}

}  // namespace
}  // namespace sparsekv::testing
