#include "kernels/label_codes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "kernels/half.h"
#include "kernels/labels.h"

namespace sparsekv {
namespace {

std::vector<float> RandomValues(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.2f, 1);
  std::vector<float> values(count);
  for (float& x : values) x = normal(random);
  return values;
}

TEST(LabelCodes, EveryFormatHasAName) {
  for (LabelFormat format : kLabelFormats) EXPECT_EQ(ParseLabelFormat(Name(format)), format);
  EXPECT_FALSE(ParseLabelFormat("int3"));
  EXPECT_FALSE(ParseLabelFormat("Int4"));
}

TEST(LabelCodes, BytesAreWhatAPageHas) {
  EXPECT_EQ(LabelBytes(LabelFormat::kBf16, 8), 16u);
  EXPECT_EQ(LabelBytes(LabelFormat::kInt8, 8), 12u);
  EXPECT_EQ(LabelBytes(LabelFormat::kInt8, 9), 16u);  // in whole words
  EXPECT_EQ(LabelBytes(LabelFormat::kInt4, 8), 8u);
  EXPECT_EQ(LabelBytes(LabelFormat::kInt4, 16), 12u);
  EXPECT_EQ(LabelBytes(LabelFormat::kInt2, 6), 8u);
  for (LabelFormat format : kLabelFormats) {
    for (uint32_t channels : {1u, 2u, 7u, 8u, 16u, 33u, 256u}) {
      const LabelLayout layout{3, 2, channels, format};
      EXPECT_EQ(layout.page_bytes(), LabelBytes(format, channels) * kBlockTokens * 3 * 2);
      EXPECT_EQ(layout.head_stride() % 128, 0u);
    }
  }
}

TEST(LabelCodes, ByHand) {
  const std::vector<float> values = {-1.0f, 14.0f, 0.0f, 6.5f, 6.6f, 5.5f, 2.0f, 1.0f, 3.0f};
  const CodedLabel label = CodeLabel(LabelFormat::kInt4, values);
  EXPECT_EQ(FromF16(label.least), -1.0f);
  EXPECT_EQ(FromF16(label.step), 1.0f);
  // 7.5 and 6.5 are halves: to the even one.
  EXPECT_EQ(label.words[0], 0x236881F0u);
  EXPECT_EQ(label.words[1], 0x4u);
  const CodedQuery query = CodeQuery(std::vector<float>{12.7f, -1.0f, 0.26f, 0.0f});
  EXPECT_FLOAT_EQ(query.unit, 0.1f);
  EXPECT_EQ(query.codes[0], 127);
  EXPECT_EQ(query.codes[1], -10);
  EXPECT_EQ(query.codes[2], 3);
  EXPECT_EQ(query.codes[3], 0);
  EXPECT_EQ(query.sum, 120);
  EXPECT_EQ(CodedScore(0.5f, 3, 0.25f, -1.0f, 8), 0.5f * (0.25f * 8 - 3));
}

TEST(LabelCodes, ValuesReadBackToTheNearestCode) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const std::vector<float> exact = RandomValues(1 + seed % 40, seed);
    const auto [low, high] = std::ranges::minmax(exact);
    for (const auto& [format, levels] : std::map<LabelFormat, float>{
             {LabelFormat::kInt8, 255.f}, {LabelFormat::kInt4, 15.f}, {LabelFormat::kInt2, 3.f}}) {
      std::vector<float> label = exact;
      RoundLabel(format, label);
      for (size_t i = 0; i < label.size(); ++i) {
        // Half a step, and what float16 rounds of step and least.
        const float bound =
            (high - low) / levels / 2 + 2e-3f * (high - low) + 2e-3f * std::fabs(low);
        EXPECT_NEAR(label[i], exact[i], bound + 1e-6f) << Name(format);
      }
      std::set<float> values(label.begin(), label.end());
      EXPECT_LE(values.size(), static_cast<size_t>(levels) + 1);
      // A score is the product of what is read back.
      std::vector<float> query = RandomValues(exact.size(), seed + 999);
      const CodedQuery coded_query = CodeQuery(query);
      const CodedLabel coded = CodeLabel(format, exact);
      RoundQuery(format, query);
      double product = 0, size = 0;
      int32_t dot = 0;
      const uint32_t bits = CodeBits(format), in_word = 32 / bits;
      for (size_t c = 0; c < exact.size(); ++c) {
        product += double{query[c]} * label[c];
        size += std::fabs(double{query[c]} * label[c]);
        dot += coded_query.codes[c] *
               static_cast<int32_t>(coded.words[c / in_word] >> (c % in_word * bits) &
                                    ((1u << bits) - 1));
      }
      const float score = CodedScore(coded_query.unit, coded_query.sum, FromF16(coded.step),
                                     FromF16(coded.least), dot);
      EXPECT_NEAR(score, product, 1e-5 * (1 + size + exact.size()));
    }
    std::vector<float> label = exact;
    RoundLabel(LabelFormat::kBf16, label);
    for (size_t i = 0; i < label.size(); ++i) EXPECT_EQ(label[i], Rounded(exact[i], DType::kBF16));
    std::vector<float> query = exact, same = exact;
    RoundQuery(LabelFormat::kBf16, same);
    EXPECT_EQ(same, exact);
    RoundQuery(LabelFormat::kInt4, query);
    float most = 0;
    for (float x : exact) most = std::max(most, std::fabs(x));
    for (size_t i = 0; i < query.size(); ++i) EXPECT_NEAR(query[i], exact[i], most / 253);
  }
}

TEST(LabelCodes, OddValuesHaveCodesToo) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (LabelFormat format : {LabelFormat::kInt8, LabelFormat::kInt4, LabelFormat::kInt2}) {
    std::vector<float> same = {1.5f, 1.5f};
    RoundLabel(format, same);
    EXPECT_EQ(same, (std::vector<float>{1.5f, 1.5f}));
    std::vector<float> odd = {kNan, kInfinity, -1e30f, 0.0f};
    RoundLabel(format, odd);
    EXPECT_NEAR(odd[1], kMostCoded, 100);
    EXPECT_NEAR(odd[2], -kMostCoded, 100);
    EXPECT_EQ(odd[0], odd[3]);
    for (float zero : {0.0f, -0.0f, kNan}) {
      EXPECT_EQ(CodeLabel(format, std::vector<float>{zero, 0.0f}).least, 0);
      EXPECT_EQ(CodeQuery(std::vector<float>{zero, 1.0f}).sum, 127);
      EXPECT_EQ(CodeQuery(std::vector<float>{zero}).unit, 0);
    }
  }
  const CodedQuery tiny = CodeQuery(std::vector<float>{190e-45f, -190e-45f});  // no unit fits
  EXPECT_EQ(tiny.codes[0], 127);
  EXPECT_EQ(tiny.codes[1], -127);
}

}  // namespace
}  // namespace sparsekv
