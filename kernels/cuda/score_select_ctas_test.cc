#include "kernels/cuda/score_select_ctas.h"

#include <gtest/gtest.h>

#include <random>

namespace sparsekv::cuda::fused {
namespace {

constexpr ClustersAtOnce kH200 = {{264, 132, 62, 30, 14}};

TEST(CtasOfRowTest, AllRowsAreAtWorkAtOnce) {
  EXPECT_EQ(CtasOfRow({8, 8192, 443}, kH200), 16u);
  EXPECT_EQ(CtasOfRow({14, 8192, 443}, kH200), 16u);
  EXPECT_EQ(CtasOfRow({15, 8192, 443}, kH200), 8u);
  EXPECT_EQ(CtasOfRow({32, 8192, 443}, kH200), 4u);
  EXPECT_EQ(CtasOfRow({132, 8192, 443}, kH200), 2u);
  EXPECT_EQ(CtasOfRow({256, kPartTokens, 1979}, kH200), 1u);
}

TEST(CtasOfRowTest, APartIsNotTooLarge) {
  EXPECT_EQ(CtasOfRow({256, kPartTokens + 1, 1979}, kH200), 2u);
  EXPECT_EQ(CtasOfRow({1000, 16 * kPartTokens, 1979}, kH200), 16u);
  EXPECT_EQ(CtasOfRow({1, 16 * kPartTokens + 1, 1979}, kH200), 0u);
  // Of which candidates would need more than half of the room.
  EXPECT_EQ(CtasOfRow({256, kPartTokens / 2, kMostWanted / 2 + 1}, kH200), 1u);
  EXPECT_EQ(CtasOfRow({256, kPartTokens, kMostWanted / 2 + 1}, kH200), 2u);
  // Of which more is wanted than can be kept beside what comes next: all keys find room.
  EXPECT_EQ(CtasOfRow({256, kMostKeys, kMostWanted + 1}, kH200), 1u);
  EXPECT_EQ(CtasOfRow({256, kMostKeys + 1, kMostWanted}, kH200), 1u);
  EXPECT_EQ(CtasOfRow({256, kMostKeys + 1, kMostWanted + 1}, kH200), 2u);
  EXPECT_EQ(CtasOfRow({1, 16 * kMostKeys + 1, kMostWanted + 1}, kH200), 0u);
}

TEST(CtasOfRowTest, ADeviceWithoutLargeClusters) {
  EXPECT_EQ(CtasOfRow({1, 1000, 10}, {{264, 132, 62, 30, 0}}), 8u);
  EXPECT_EQ(CtasOfRow({1, 9 * kPartTokens, 10}, {{264, 132, 62, 30, 0}}), 0u);
  EXPECT_EQ(CtasOfRow({1, 1000, 10}, {{20, 0, 0, 0, 0}}), 1u);
}

// What CutRow makes of a row: equal parts in whole cuts.
TEST(CtasOfRowTest, PartsHoldAnyRow) {
  std::mt19937 random(1);
  for (int i = 0; i < 100000; ++i) {
    const Work work = {1 + static_cast<uint32_t>(random() % 2000),
                       1 + static_cast<uint32_t>(random() % (1u << (random() % 22))),
                       static_cast<uint32_t>(random() % (2 * kMostWanted))};
    const uint32_t ctas = CtasOfRow(work, kH200);
    if (ctas == 0) continue;
    const uint32_t cuts = (work.tokens + kCutTokens - 1) / kCutTokens;
    const uint32_t part = (cuts + ctas - 1) / ctas * kCutTokens;
    const uint32_t most = work.want > kMostWanted       ? kMostKeys
                          : work.want > kMostWanted / 2 ? kPartTokens / 2
                                                        : kPartTokens;
    ASSERT_LE(part, most);
  }
}

}  // namespace
}  // namespace sparsekv::cuda::fused
