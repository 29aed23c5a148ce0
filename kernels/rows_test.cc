#include <gtest/gtest.h>

#include "kernels/test_cases.h"

namespace sparsekv::testing {
namespace {

class RowsTest : public CpuTest {};
SPARSEKV_ON_EVERY_CPU(RowsTest);

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

// A step of two sequences with a token between them that belongs to neither.
std::vector<StepSpan> Spans(Random& random) {
  const uint32_t first = random.Between(1, 40);
  return {{.first = 0, .tokens = first, .position = random.Between(0, 100)},
          {.first = first + 1, .tokens = random.Between(1, 3), .position = random.Between(0, 200)}};
}

std::vector<uint32_t> Ends(const std::vector<StepSpan>& spans) {
  std::vector<uint32_t> ends;
  for (const StepSpan& span : spans) ends.push_back(span.position + span.tokens);
  return ends;
}

TEST_P(RowsTest, AppendRowsWritesItsRowsAndNothingElse) {
  Random random(11);
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const uint32_t kv_heads = random.Between(1, 4);
    const uint32_t head_dim = random.Pick({8u, 24u, 128u});
    const std::vector<StepSpan> spans = Spans(random);
    Rows rows(random, kv_heads, head_dim, dtype, Ends(spans));
    const size_t tokens = spans[1].first + spans[1].tokens;
    const std::vector<float> k = random.Normals(tokens * kv_heads * head_dim);
    const std::vector<float> v = random.Normals(tokens * kv_heads * head_dim);
    const AppendRowsArgs::Item items[] = {{spans[0], rows.Table(0)}, {spans[1], rows.Table(1)}};
    const AppendRowsArgs args{.k = k.data(), .v = v.data(), .items = items};
    const std::vector<std::byte> before = rows.pool();
    reference().AppendRows(args);
    const std::vector<std::byte> expected = rows.pool();
    rows.pool().assign(before.begin(), before.end());
    cpu().AppendRows(args);
    EXPECT_TRUE(rows.pool() == expected);
    // And by hand: the last value of the last token's last head.
    const std::byte* row = rows.Table(1).Row(kv_heads - 1, spans[1].position + spans[1].tokens - 1);
    EXPECT_EQ(LoadValue(row, 2 * head_dim - 1, dtype), Rounded(v.back(), dtype));
  }
}

TEST_P(RowsTest, AppendLabelsRoundsThroughTheRow) {
  Random random(12);
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const uint32_t kv_heads = random.Between(1, 4);
    const uint32_t head_dim = 32;
    const uint32_t channels = random.Between(1, 9);
    const std::vector<StepSpan> spans = Spans(random);
    const std::vector<uint16_t> chosen = Labels::Channels(random, kv_heads, head_dim, channels);
    Labels got(kv_heads, channels, Ends(spans));
    Labels expected(kv_heads, channels, Ends(spans));
    const size_t tokens = spans[1].first + spans[1].tokens;
    const std::vector<float> k = random.Normals(tokens * kv_heads * head_dim);
    for (Labels* labels : {&got, &expected}) {
      const AppendLabelsArgs::Item items[] = {{spans[0], labels->Table(0)},
                                              {spans[1], labels->Table(1)}};
      (labels == &got ? cpu() : reference())
          .AppendLabels({.k = k.data(),
                         .kv_heads = kv_heads,
                         .head_dim = head_dim,
                         .row_dtype = dtype,
                         .channels = chosen.data(),
                         .items = items});
    }
    EXPECT_TRUE(got.memory() == expected.memory());
    const float last = k[(tokens * kv_heads - 1) * head_dim + chosen.back()];
    const uint32_t token = spans[1].position + spans[1].tokens - 1;
    EXPECT_EQ(LoadValue(got.Table(1).Head(kv_heads - 1, token / kBlockTokens),
                        (channels - 1) * kBlockTokens + token % kBlockTokens, DType::kBF16),
              Rounded(Rounded(last, dtype), DType::kBF16));
  }
}

}  // namespace
}  // namespace sparsekv::testing
