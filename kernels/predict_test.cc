#include <gtest/gtest.h>

#include <iterator>
#include <set>

#include "kernels/test_cases.h"

namespace sparsekv::testing {
namespace {

class PredictTest : public BackendTest {};
SPARSEKV_ON_ONE_INSTRUCTION_SET(PredictTest);

TEST_P(PredictTest, ExpandedQueryHasTheChannelsAndZerosElsewhere) {
  Random random(3);
  const uint32_t kv_heads = 2, group = 3, dim = 16, width = 4, tokens = 5;
  const auto compact = random.Normals(size_t{tokens} * kv_heads * group * width);
  const Shared<uint16_t> channels = {3, 11, 0, 8, 7, 15, 15, 7};
  Output<float> q(size_t{tokens} * kv_heads * group * dim);
  Shared<float> values = compact;
  for (size_t i = 0; i < values.size() / width; ++i) {  // head 1 names its channels twice
    if (i % (kv_heads * group) >= group) {
      values[i * width + 3] = values[i * width];
      values[i * width + 2] = values[i * width + 1];
    }
  }
  backend().ExpandQuery({.compact = values.data(),
                         .channels = channels.data(),
                         .tokens = tokens,
                         .kv_heads = kv_heads,
                         .group = group,
                         .head_dim = dim,
                         .width = width,
                         .q = q.data()});
  EXPECT_TRUE(q.MarginsUntouched());
  for (uint32_t i = 0; i < tokens * kv_heads * group; ++i) {
    std::vector<float> expected(dim, 0.0f);
    const uint32_t kv_head = i % (kv_heads * group) / group;
    for (uint32_t j = 0; j < width; ++j) {
      expected[channels[kv_head * width + j]] = values[i * width + j];
    }
    ExpectSameBits(q.data() + i * dim, expected.data(), dim, "q");
  }
}

TEST_P(PredictTest, ExtrapolationFollowsTheDrift) {
  const Shared<float> x = {1, 2, 10, 20}, previous = {0, 1, 7, 7};
  Shared<float> drift = {0, 0, 0.5, 1, 100, 200};  // [3 layers, 2]
  Output<float> out(4);
  const ExtrapolateArgs::Item item = {.token = 1, .drift = drift.data(), .rate = 0.5f};
  backend().Extrapolate({.x = x.data(),
                         .previous = previous.data(),
                         .tokens = 2,
                         .width = 2,
                         .layer = 1,
                         .items = {&item, 1},
                         .out = out.data()});
  EXPECT_TRUE(out.MarginsUntouched());
  EXPECT_EQ(drift, (Shared<float>{0, 0, 1.75, 7, 100, 200}));
  ExpectSameBits(out.data(), std::vector<float>{1, 2, 110, 220}.data(), 4, "out");
  backend().Extrapolate(
      {.x = x.data(), .tokens = 2, .width = 2, .layer = 0, .items = {&item, 1}, .out = out.data()});
  EXPECT_EQ(drift, (Shared<float>{0, 0, 1.75, 7, 100, 200}));
  ExpectSameBits(out.data(), std::vector<float>{1, 2, 11.75, 27}.data(), 4, "layer 0");
}

TEST_P(PredictTest, CosineOfKnownVectors) {
  const Shared<float> a = {1, 0, 2, 2, 0, 0}, b = {1, 1, -4, -4, 1, 1};
  Output<float> out(3);
  backend().Cosine({.a = a.data(), .b = b.data(), .tokens = 3, .width = 2, .out = out.data()});
  EXPECT_TRUE(out.MarginsUntouched());
  EXPECT_FLOAT_EQ(out[0], std::sqrt(0.5f));
  EXPECT_FLOAT_EQ(out[1], -1.0f);
  EXPECT_EQ(out[2], 0.0f);
}

TEST_P(PredictTest, OverlapCountsWhatListsShare) {
  Random random(13);
  const uint32_t kv_heads = 3;
  const size_t a_stride = 2100, b_stride = 1900;
  Shared<uint32_t> a(4 * kv_heads * a_stride), b(4 * kv_heads * b_stride);
  Output<uint32_t> common(4 * kv_heads);
  const auto ascending = [&](uint32_t* to, uint32_t count, uint32_t below) {
    std::set<uint32_t> values;
    while (values.size() < count) values.insert(random.Between(0, below - 1));
    std::copy(values.begin(), values.end(), to);
  };
  for (uint32_t round = 0; round < 6; ++round) {
    std::vector<OverlapArgs::Item> items;
    std::vector<uint32_t> expected;
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t below = random.Pick({2200u, 10000u});
      const OverlapArgs::Item item = {.a = a.data() + i * kv_heads * a_stride,
                                      .b = b.data() + i * kv_heads * b_stride,
                                      .a_stride = a_stride,
                                      .b_stride = b_stride,
                                      .a_count = random.Pick({0u, 1u, random.Between(2, 2100)}),
                                      .b_count = random.Pick({0u, 64u, random.Between(2, 1900)}),
                                      .common = common.data() + i * kv_heads};
      for (uint32_t h = 0; h < kv_heads; ++h) {
        uint32_t* of_a = a.data() + (i * kv_heads + h) * a_stride;
        uint32_t* of_b = b.data() + (i * kv_heads + h) * b_stride;
        ascending(of_a, item.a_count, below);
        ascending(of_b, item.b_count, below);
        std::vector<uint32_t> both;
        std::set_intersection(of_a, of_a + item.a_count, of_b, of_b + item.b_count,
                              std::back_inserter(both));
        expected.push_back(static_cast<uint32_t>(both.size()));
      }
      items.push_back(item);
    }
    backend().Overlap({.kv_heads = kv_heads, .items = items});
    EXPECT_TRUE(common.MarginsUntouched());
    ExpectSameBits(common.data(), expected.data(), expected.size(), "common");
  }
}

}  // namespace
}  // namespace sparsekv::testing
