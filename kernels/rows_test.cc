#include <gtest/gtest.h>

#include "kernels/test_cases.h"

namespace sparsekv::testing {
namespace {

class RowsTest : public BackendTest {};
SPARSEKV_ON_EVERY_BACKEND(RowsTest);

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
    const Shared<float> k = random.Normals(tokens * kv_heads * head_dim);
    const Shared<float> v = random.Normals(tokens * kv_heads * head_dim);
    const AppendRowsArgs::Item items[] = {{spans[0], rows.Table(0)}, {spans[1], rows.Table(1)}};
    const AppendRowsArgs args{.k = k.data(), .v = v.data(), .items = items};
    const Shared<std::byte> before = rows.pool();
    reference().AppendRows(args);
    const Shared<std::byte> expected = rows.pool();
    rows.pool().assign(before.begin(), before.end());
    backend().AppendRows(args);
    EXPECT_TRUE(rows.pool() == expected);
    // And by hand: the last value of the last token's last head.
    const std::byte* row = rows.Table(1).Row(kv_heads - 1, spans[1].position + spans[1].tokens - 1);
    EXPECT_EQ(LoadValue(row, 2 * head_dim - 1, dtype), Rounded(v.back(), dtype));
  }
}

TEST_P(RowsTest, AppendLabelsRoundsThroughTheRow) {
  Random random(12);
  for (LabelFormat format : kLabelFormats) {
    for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      const uint32_t kv_heads = random.Between(1, 4);
      const uint32_t head_dim = 64;
      const uint32_t channels = random.Pick({8u, 16u, 64u, random.Between(1, 40)});
      const std::vector<StepSpan> spans = Spans(random);
      const Shared<uint16_t> chosen = Labels::Channels(random, kv_heads, head_dim, channels);
      Labels got(kv_heads, channels, Ends(spans), format);
      Labels expected(kv_heads, channels, Ends(spans), format);
      const size_t tokens = spans[1].first + spans[1].tokens;
      Shared<float> k = random.Normals(tokens * kv_heads * head_dim);
      // And some that are no numbers, or of no size that float16 has.
      for (uint32_t i = 0; i < 20 && format != LabelFormat::kBf16; ++i) {
        k[random.Between(0, static_cast<uint32_t>(k.size()) - 1)] =
            random.Pick({std::numeric_limits<float>::quiet_NaN(),
                         -std::numeric_limits<float>::infinity(), 1e6f, -0.0f, 1e-8f});
      }
      for (Labels* labels : {&got, &expected}) {
        const AppendLabelsArgs::Item items[] = {{spans[0], labels->Table(0)},
                                                {spans[1], labels->Table(1)}};
        (labels == &got ? backend() : reference())
            .AppendLabels({.k = k.data(),
                           .kv_heads = kv_heads,
                           .head_dim = head_dim,
                           .row_dtype = dtype,
                           .channels = chosen.data(),
                           .items = items});
      }
      EXPECT_TRUE(got.memory() == expected.memory()) << Name(format) << " " << channels;
      // And by hand: the last token's last head.
      std::vector<float> label(channels), by_hand;
      const uint32_t token = spans[1].position + spans[1].tokens - 1;
      LoadLabel(got.layout(), got.Table(1).Head(kv_heads - 1, token / kBlockTokens),
                token % kBlockTokens, label);
      for (uint32_t c = 0; c < channels; ++c) {
        const uint16_t channel = chosen[(kv_heads - 1) * channels + c];
        by_hand.push_back(Rounded(k[(tokens * kv_heads - 1) * head_dim + channel], dtype));
      }
      RoundLabel(format, by_hand);
      EXPECT_EQ(label, by_hand) << Name(format);
    }
  }
}

}  // namespace
}  // namespace sparsekv::testing
