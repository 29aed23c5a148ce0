#include <gtest/gtest.h>

#include "kernels/test_cases.h"

namespace sparsekv::testing {
namespace {

class AttentionTest : public CpuTest {};
SPARSEKV_ON_EVERY_CPU(AttentionTest);

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

AttendArgs Args(const Shape& shape, const std::vector<float>& q, Output<float>& out) {
  return {.q = q.data(),
          .out = out.data(),
          .kv_heads = shape.kv_heads,
          .group = shape.group,
          .head_dim = shape.head_dim,
          .scale = 1 / std::sqrt(static_cast<float>(shape.head_dim))};
}

// Dense items of the given spans, the tokens of the step back to back with one unused between.
void CheckDense(Backend& cpu, Backend& reference, Random& random, const Shape& shape,
                const std::vector<StepSpan>& wanted) {
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
  const std::vector<float> q = random.Normals(tokens * width, 2.0f);
  Output<float> got(tokens * width);
  Output<float> expected(tokens * width);
  AttendArgs args = Args(shape, q, got);
  args.items = items;
  cpu.Attend(args);
  args.out = expected.data();
  reference.Attend(args);
  for (const StepSpan& span : spans) {
    const size_t unused = (span.first + span.tokens) * width;
    EXPECT_TRUE(got.Untouched(unused, width)) << "wrote a token of no item";
    std::fill_n(got.data() + unused, width, 0.0f);
    std::fill_n(expected.data() + unused, width, 0.0f);
  }
  ExpectNear(got, expected, 1e-5f);
}

TEST_P(AttentionTest, DenseOfRandomShapes) {
  Random random(21);
  for (int round = 0; round < 10; ++round) {
    CheckDense(cpu(), reference(), random, RandomShape(random),
               {{.tokens = random.Between(1, 40), .position = random.Between(0, 150)},
                {.tokens = 1, .position = random.Between(0, 300)},
                {.tokens = random.Between(1, 3), .position = 0}});
  }
}

TEST_P(AttentionTest, DenseOverSeveralSplits) {
  Random random(22);
  CheckDense(cpu(), reference(), random, {1, 3, 16, DType::kBF16},
             {{.tokens = 1, .position = 3000}});
  CheckDense(cpu(), reference(), random, {2, 1, 40, DType::kF16},
             {{.tokens = 70, .position = 1000}});  // lists that end on both sides of a split
  CheckDense(cpu(), reference(), random, {1, 2, 8, DType::kF32}, {{.tokens = 2, .position = 1023}});
}

TEST_P(AttentionTest, LargestGroupAndHeadDim) {
  Random random(23);
  CheckDense(cpu(), reference(), random, {1, kMaxGroup, kMaxHeadDim, DType::kBF16},
             {{.tokens = 2, .position = 64}});
}

TEST_P(AttentionTest, SelectionsAttendTheirRowsOnly) {
  Random random(24);
  for (int round = 0; round < 12; ++round) {
    const Shape shape = RandomShape(random);
    const uint32_t length = random.Between(1, 2500);
    const uint32_t count = random.Between(1, length);
    Rows rows(random, shape.kv_heads, shape.head_dim, shape.dtype, {length});
    std::vector<uint32_t> selection;
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
    const std::vector<float> q = random.Normals(width, 2.0f);
    Output<float> got(width);
    Output<float> expected(width);
    AttendArgs args = Args(shape, q, got);
    args.selection_stride = count + 1;
    args.items = items;
    cpu().Attend(args);
    args.out = expected.data();
    reference().Attend(args);
    ExpectNear(got, expected, 1e-5f);
  }
}

TEST_P(AttentionTest, OneRowIsItsValue) {
  Random random(25);
  Rows rows(random, 1, 64, DType::kBF16, {1});
  rows.Fill(random, 0, 1);
  const std::vector<AttendArgs::Item> items = {{.span = {.tokens = 1}, .rows = rows.Table(0)}};
  const std::vector<float> q = random.Normals(64, 30.0f);
  Output<float> got(64);
  AttendArgs args = Args({1, 1, 64, DType::kBF16}, q, got);
  args.items = items;
  cpu().Attend(args);
  for (uint32_t c = 0; c < 64; ++c) {
    EXPECT_EQ(got[c], LoadValue(rows.Table(0).Row(0, 0), 64 + c, DType::kBF16));
  }
}

TEST_P(AttentionTest, HugeScoresStayFinite) {
  Random random(26);
  const Shape shape{1, 2, 32, DType::kF32};
  Rows rows(random, 1, 32, DType::kF32, {500});
  rows.Fill(random, 0, 500);
  const std::vector<AttendArgs::Item> items = {
      {.span = {.tokens = 1, .position = 499}, .rows = rows.Table(0)}};
  const std::vector<float> q = random.Normals(64, 1e4f);
  Output<float> got(64);
  Output<float> expected(64);
  AttendArgs args = Args(shape, q, got);
  args.items = items;
  cpu().Attend(args);
  args.out = expected.data();
  reference().Attend(args);
  ExpectNear(got, expected, 1e-2f);  // scores of 1e4 carry an absolute error near 1e-3
}

}  // namespace
}  // namespace sparsekv::testing
