#include <gtest/gtest.h>

#include "kernels/test_cases.h"

namespace sparsekv::testing {
namespace {

struct Shape {
  uint32_t kv_heads;
  uint32_t group;
  uint32_t head_dim;
  DType dtype;
};

Shape RandomShape(Random& random) {
  return {.kv_heads = random.Between(1, 3),
          .group = random.Between(1, 8),
          .head_dim = 8 * random.Between(1, 32),
          .dtype = random.Pick({DType::kF32, DType::kF16, DType::kBF16})};
}

AttendArgs Args(const Shape& shape, const Shared<float>& q, Output<float>& out) {
  return {.q = q.data(),
          .out = out.data(),
          .kv_heads = shape.kv_heads,
          .group = shape.group,
          .head_dim = shape.head_dim,
          .scale = 1 / std::sqrt(static_cast<float>(shape.head_dim))};
}

class AttentionTest : public BackendTest {
 protected:
  float AttendTolerance(StepKind kind) const {
    return Tolerance(1e-5f, kind == StepKind::kDecode ? 2e-4f : 2e-2f);
  }

  // Dense items of the given spans, the tokens of the step back to back with one unused between.
  void CheckDense(Random& random, const Shape& shape, StepKind kind,
                  const std::vector<StepSpan>& wanted, uint32_t window = 0) {
    SCOPED_TRACE(::testing::Message()
                 << wanted.size() << " items, the first of " << wanted[0].tokens << " tokens, "
                 << shape.kv_heads << " x " << shape.group << " heads of " << shape.head_dim << " "
                 << Name(shape.dtype) << ", window " << window);
    std::vector<StepSpan> spans = wanted;
    std::vector<uint32_t> lengths;
    uint32_t tokens = 0;
    for (StepSpan& span : spans) {
      span.first = tokens;
      tokens += span.tokens + 1;
      lengths.push_back(span.position + span.tokens);
    }
    Rows rows(random, shape.kv_heads, shape.head_dim, shape.dtype, lengths);
    std::vector<AttendArgs::Item> items;
    for (size_t i = 0; i < spans.size(); ++i) {
      rows.Fill(random, i, lengths[i]);
      items.push_back({.span = spans[i], .rows = rows.Table(i)});
    }
    const size_t width = size_t{shape.kv_heads} * shape.group * shape.head_dim;
    const Shared<float> q = random.Normals(tokens * width, 2.0f);
    Output<float> got(tokens * width);
    Output<float> expected(tokens * width);
    AttendArgs args = Args(shape, q, got);
    args.window = window;
    args.items = items;
    InStep(backend(), kind, [&] { backend().Attend(args); });
    args.out = expected.data();
    reference().Attend(args);
    for (const StepSpan& span : spans) {
      const size_t unused = (span.first + span.tokens) * width;
      EXPECT_TRUE(got.Untouched(unused, width)) << "wrote a token of no item";
      std::fill_n(got.data() + unused, width, 0.0f);
      std::fill_n(expected.data() + unused, width, 0.0f);
    }
    ExpectNear(got, expected, AttendTolerance(kind));
  }
};
SPARSEKV_ON_EVERY_BACKEND(AttentionTest);

TEST_P(AttentionTest, DenseOfRandomShapes) {
  Random random(21);
  for (int round = 0; round < (slow() ? 3 : 9); ++round) {
    CheckDense(random, RandomShape(random), StepKind::kPrompt,
               {{.tokens = random.Between(1, 40), .position = random.Between(0, 150)},
                {.tokens = 1, .position = random.Between(0, 300)},
                {.tokens = random.Between(1, 3), .position = 0}});
  }
}

TEST_P(AttentionTest, ChunksOfAPrompt) {
  Random random(27);
  for (uint32_t tokens : {1u, 3u, 8u, 17u}) {
    CheckDense(random, {2, 4, 128, DType::kBF16}, StepKind::kPrompt,
               {{.tokens = tokens, .position = random.Between(0, 50)}});
  }
  CheckDense(random, {1, 4, 64, DType::kF16}, StepKind::kPrompt, {{.tokens = 64, .position = 64}});
  CheckDense(random, {1, 2, 24, DType::kBF16}, StepKind::kPrompt,
             {{.tokens = 300, .position = 37}, {.tokens = 5, .position = 0}});
}

TEST_P(AttentionTest, BatchesOfADecodeStep) {
  Random random(28);
  for (uint32_t batch : {1u, 3u, 8u, 17u, 64u, 300u}) {
    const Shape shape = batch < 64 ? Shape{2, 4, 128, DType::kBF16} : Shape{1, 4, 16, DType::kF16};
    std::vector<StepSpan> spans(batch);
    for (StepSpan& span : spans) span = {.tokens = 1, .position = random.Between(0, 70)};
    CheckDense(random, shape, StepKind::kDecode, spans);
  }
}

TEST_P(AttentionTest, DenseOverSeveralSplits) {
  Random random(22);
  for (StepKind kind : Kinds()) {
    CheckDense(random, {1, 3, 16, DType::kBF16}, kind, {{.tokens = 1, .position = 3000}});
  }
  CheckDense(random, {2, 1, 40, DType::kF16}, StepKind::kPrompt,
             {{.tokens = 70, .position = 1000}});  // lists that end on both sides of a split
  CheckDense(random, {1, 2, 8, DType::kF32}, StepKind::kPrompt, {{.tokens = 2, .position = 1023}});
}

// Windows of any length, below a tile to beyond every list, over prompts, batches and splits.
TEST_P(AttentionTest, Windows) {
  if (cuda()) GTEST_SKIP() << "no windows on this backend";
  Random random(29);
  for (int round = 0; round < (slow() ? 4 : 25); ++round) {
    const uint32_t window = random.Pick(
        {1u, random.Between(2, 63), 64u, 65u, random.Between(66, 400), random.Between(900, 1300)});
    CheckDense(random, RandomShape(random), StepKind::kPrompt,
               {{.tokens = random.Between(1, 130), .position = random.Between(0, 500)},
                {.tokens = 1, .position = random.Between(0, 1500)},
                {.tokens = random.Between(1, 30), .position = 0}},
               window);
  }
  CheckDense(random, {1, 3, 16, DType::kBF16}, StepKind::kDecode, {{.tokens = 1, .position = 3000}},
             2100);
  CheckDense(random, {1, 2, 16, DType::kBF16}, StepKind::kPrompt,
             {{.tokens = 90, .position = 2000}}, 1000);
}

TEST_P(AttentionTest, LargestGroupAndHeadDim) {
  Random random(23);
  CheckDense(random, {1, kMaxGroup, kMaxHeadDim, DType::kBF16}, StepKind::kPrompt,
             {{.tokens = 2, .position = 64}});
  CheckDense(random, {1, kMaxGroup, kMaxHeadDim, DType::kBF16}, StepKind::kDecode,
             {{.tokens = 1, .position = 64}});
}

TEST_P(AttentionTest, SelectionsAttendTheirRowsOnly) {
  Random random(24);
  for (int round = 0; round < (slow() ? 3 : 10); ++round) {
    const Shape shape = RandomShape(random);
    const uint32_t length = random.Between(1, 2500);
    const uint32_t count = random.Between(1, length);
    Rows rows(random, shape.kv_heads, shape.head_dim, shape.dtype, {length});
    Shared<uint32_t> selection;
    for (uint32_t h = 0; h < shape.kv_heads; ++h) {
      std::vector<uint32_t> all(length);
      std::iota(all.begin(), all.end(), 0u);
      random.Shuffle(all);
      std::sort(all.begin(), all.begin() + count);
      selection.insert(selection.end(), all.begin(), all.begin() + count);
      selection.push_back(~0u);  // stride is count + 1
      // Rows that are not selected stay NaN.
      for (uint32_t i = 0; i < count; ++i) {
        for (uint32_t c = 0; c < 2 * shape.head_dim; ++c) {
          StoreValue(rows.Table(0).Row(h, all[i]), c, shape.dtype, random.Normal());
        }
      }
    }
    const std::vector<AttendArgs::Item> items = {
        {.span = {.first = 0, .tokens = 1, .position = length - 1},
         .rows = rows.Table(0),
         .selection = selection.data(),
         .count = count}};
    const size_t width = size_t{shape.kv_heads} * shape.group * shape.head_dim;
    const Shared<float> q = random.Normals(width, 2.0f);
    Output<float> expected(width);
    AttendArgs args = Args(shape, q, expected);
    args.selection_stride = count + 1;
    args.items = items;
    reference().Attend(args);
    for (StepKind kind : Kinds()) {
      Output<float> got(width);
      args.out = got.data();
      InStep(backend(), kind, [&] { backend().Attend(args); });
      ExpectNear(got, expected, AttendTolerance(kind));
    }
  }
}

TEST_P(AttentionTest, OneRowIsItsValue) {
  Random random(25);
  Rows rows(random, 1, 64, DType::kBF16, {1});
  rows.Fill(random, 0, 1);
  const std::vector<AttendArgs::Item> items = {{.span = {.tokens = 1}, .rows = rows.Table(0)}};
  const Shared<float> q = random.Normals(64, 30.0f);
  for (StepKind kind : Kinds()) {
    Output<float> got(64);
    AttendArgs args = Args({1, 1, 64, DType::kBF16}, q, got);
    args.items = items;
    InStep(backend(), kind, [&] { backend().Attend(args); });
    for (uint32_t c = 0; c < 64; ++c) {
      const float value = LoadValue(rows.Table(0).Row(0, 0), 64 + c, DType::kBF16);
      EXPECT_NEAR(got[c], value, Tolerance(0, 1e-5f) * std::fabs(value));
    }
  }
}

TEST_P(AttentionTest, HugeScoresStayFinite) {
  Random random(26);
  const Shape shape{1, 2, 32, DType::kF32};
  Rows rows(random, 1, 32, DType::kF32, {500});
  rows.Fill(random, 0, 500);
  const std::vector<AttendArgs::Item> items = {
      {.span = {.tokens = 1, .position = 499}, .rows = rows.Table(0)}};
  const Shared<float> q = random.Normals(64, 1e4f);
  Output<float> got(64);
  Output<float> expected(64);
  AttendArgs args = Args(shape, q, expected);
  args.items = items;
  reference().Attend(args);
  args.out = got.data();
  InStep(backend(), StepKind::kDecode, [&] { backend().Attend(args); });
  ExpectNear(got, expected, 1e-2f);  // scores of 1e4 carry an absolute error near 1e-3
  if (!cuda()) return;
  // A prompt's queries are rounded, so that such scores are others; they are numbers still.
  Output<float> rounded(64);
  args.out = rounded.data();
  InStep(backend(), StepKind::kPrompt, [&] { backend().Attend(args); });
  for (size_t i = 0; i < rounded.size(); ++i) EXPECT_TRUE(std::isfinite(rounded[i]));
}

}  // namespace
}  // namespace sparsekv::testing
