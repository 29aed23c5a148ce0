#include "kernels/half.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

namespace sparsekv {
namespace {

TEST(HalfTest, EveryF16SurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = FromF16(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(FromF16(ToF16(value))));
    } else {
      EXPECT_EQ(ToF16(value), bits);
    }
  }
}

TEST(HalfTest, F16RoundsToNearestEven) {
  for (uint32_t bits = 0; bits < 0x7BFF; ++bits) {  // every neighbouring pair of finite values
    const double low = FromF16(static_cast<uint16_t>(bits));
    const double high = FromF16(static_cast<uint16_t>(bits + 1));
    const float middle = static_cast<float>((low + high) / 2);
    EXPECT_EQ(ToF16(middle), bits % 2 == 0 ? bits : bits + 1);
    EXPECT_EQ(ToF16(std::nextafter(middle, 0.0f)), bits);
    EXPECT_EQ(ToF16(-std::nextafter(middle, 1e9f)), (bits + 1) | 0x8000u);
  }
  EXPECT_EQ(ToF16(65519.9f), 0x7BFF);
  EXPECT_EQ(ToF16(65520.0f), 0x7C00);
  EXPECT_EQ(ToF16(std::numeric_limits<float>::infinity()), 0x7C00);
}

TEST(HalfTest, Bf16RoundsToNearestEven) {
  EXPECT_EQ(ToBf16(1.0f), 0x3F80);
  EXPECT_EQ(ToBf16(std::bit_cast<float>(0x3F808000u)), 0x3F80);  // ties to the even one
  EXPECT_EQ(ToBf16(std::bit_cast<float>(0x3F818000u)), 0x3F82);
  EXPECT_EQ(ToBf16(std::bit_cast<float>(0x3F808001u)), 0x3F81);
  EXPECT_EQ(ToBf16(std::bit_cast<float>(0x7F7FFFFFu)), 0x7F80);  // up to infinity
  EXPECT_TRUE(std::isnan(FromBf16(ToBf16(std::bit_cast<float>(0x7F800001u)))));
}

}  // namespace
}  // namespace sparsekv
