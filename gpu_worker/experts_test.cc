// Routing, and that what a token gets from its experts depends on it alone.
#include "gpu_worker/experts.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

namespace sparsekv {
namespace {

std::vector<ExpertChoice> Route(const ExpertsConfig& experts, const std::vector<float>& logits) {
  std::vector<ExpertChoice> chosen;
  RouteToken(experts, logits, chosen);
  return chosen;
}

TEST(Routing, TakesTheHighestTiesByLowerIndex) {
  ExpertsConfig two{.count = 5, .per_token = 2};
  auto chosen = Route(two, {0, 3, 1, 3, 3});
  ASSERT_EQ(chosen.size(), 2u);
  EXPECT_EQ(chosen[0].expert, 1u);
  EXPECT_EQ(chosen[1].expert, 3u);
  chosen = Route(two, {5, 0, 1, 0, 7});
  EXPECT_EQ(chosen[0].expert, 0u);  // by rising index, not by weight
  EXPECT_EQ(chosen[1].expert, 4u);
  const double total = std::exp(5) + 2 * std::exp(0) + std::exp(1) + std::exp(7);
  EXPECT_NEAR(chosen[1].weight, std::exp(7) / total, 1e-6);
  two.normalise = true;
  chosen = Route(two, {5, 0, 1, 0, 7});
  EXPECT_NEAR(chosen[0].weight + chosen[1].weight, 1, 1e-6);
  EXPECT_NEAR(chosen[0].weight / chosen[1].weight, std::exp(-2), 1e-6);
}

TEST(Routing, NanHasNoOrderButHarmsNothing) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(Route({.count = 3, .per_token = 2}, {nan, nan, nan}).size(), 2u);
  EXPECT_EQ(Route({.count = 3, .per_token = 3}, {1, nan, 2}).size(), 3u);
}

class ExpertsTest : public testing::Test {
 protected:
  static constexpr uint32_t kHidden = 40, kInner = 24, kExperts = 6, kTokens = 33;

  WeightView Matrix(uint32_t rows, uint32_t cols) {
    std::normal_distribution<float> normal(0, 1 / std::sqrt(static_cast<float>(cols)));
    auto& data = memory_.emplace_back(size_t{rows} * cols);
    for (float& value : data) value = normal(random_);
    return {data.data(), DType::kF32, rows, cols};
  }

  void SetUp() override {
    config_.hidden_size = kHidden;
    config_.rms_norm_eps = 1e-5f;
    config_.experts = {.count = kExperts,
                       .per_token = 2,
                       .intermediate_size = kInner,
                       .normalise = true,
                       .layers = {true}};
    layer_.mlp_norm = Matrix(1, kHidden);
    layer_.router = Matrix(kExperts, kHidden);
    for (uint32_t i = 0; i < kExperts; ++i) {
      layer_.experts.push_back(
          {Matrix(kInner, kHidden), Matrix(kInner, kHidden), Matrix(kHidden, kInner)});
    }
    const size_t most = kTokens * kHidden;
    for (float** buffer : {&scratch_.normed, &scratch_.gate, &scratch_.up, &scratch_.router,
                           &scratch_.expert_in, &scratch_.mixed}) {
      *buffer = memory_.emplace_back(most).data();
    }
  }

  std::vector<float> Add(Backend& backend, std::vector<float> hidden) {
    Experts experts(config_, &backend, scratch_);
    experts.Add(layer_, hidden.data(), static_cast<uint32_t>(hidden.size() / kHidden));
    read_ = experts.experts_read();
    return hidden;
  }

  std::mt19937 random_{5};
  std::vector<std::vector<float>> memory_;
  ModelConfig config_;
  LayerWeights layer_;
  Scratch scratch_;
  uint32_t read_ = 0;
};

TEST_F(ExpertsTest, ATokensSumDependsOnItAlone) {
  auto backend = MakeCpuBackend(2), reference = MakeReferenceBackend();
  std::normal_distribution<float> normal;
  std::vector<float> hidden(kTokens * kHidden);
  for (float& value : hidden) value = normal(random_);
  const std::vector<float> all = Add(*backend, hidden);
  const std::vector<float> slow = Add(*reference, hidden);
  for (size_t i = 0; i < all.size(); ++i) ASSERT_NEAR(all[i], slow[i], 1e-4);
  for (uint32_t t = 0; t < kTokens; ++t) {
    const auto begin = hidden.begin() + t * kHidden;
    const std::vector<float> alone = Add(*backend, {begin, begin + kHidden});
    EXPECT_EQ(read_, 2u) << "a token reads its experts and no others";
    EXPECT_EQ(std::memcmp(alone.data(), all.data() + t * kHidden, kHidden * sizeof(float)), 0);
  }
}

}  // namespace
}  // namespace sparsekv
