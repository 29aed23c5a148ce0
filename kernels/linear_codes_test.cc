// Products with integer and float8 codes: against the floats that the codes mean, and the
// invariance rule.
#include <gtest/gtest.h>

#include "kernels/coded_weights_testing.h"

namespace sparsekv::testing {
namespace {

using Shape = CodedWeights::Shape;

std::string Text(const Shape& s) {
  const char* names[] = {"plain", "int4", "int8", "fp8"};
  return std::string(names[static_cast<int>(s.encoding)]) + " " + std::to_string(s.cols) + " -> " +
         std::to_string(s.rows) + ", groups of " + std::to_string(s.group) + " x " +
         std::to_string(s.block_rows) + ", " + std::string(Name(s.scale_type)) +
         (s.zeros ? ", zeros" : "") + (s.order ? ", order" : "");
}

Shape RandomShape(Random& random) {
  Shape s;
  s.encoding = random.Pick({Encoding::kInt4, Encoding::kInt8, Encoding::kFp8});
  s.rows = random.Between(1, 90);
  s.scale_type = random.Pick({DType::kF32, DType::kF16, DType::kBF16});
  s.zeros = random.Pick({false, true});
  s.order = random.Pick({false, true});
  const uint32_t group = 8 * random.Between(1, 40);
  switch (random.Between(0, 2)) {
    case 0:  // one group
      s.group = s.cols = random.Between(1, 300);
      break;
    case 1:
      s.group = group;
      s.cols = group * random.Between(1, 5);
      break;
    case 2:
      s.group = random.Pick({32u, 64u, 128u});
      s.cols = s.group * random.Between(1, 5);
      break;
  }
  if (s.encoding == Encoding::kFp8) {
    s.block_rows = random.Pick({1u, 16u, 128u, s.rows});
    if (s.group < s.cols && random.Pick({false, true})) s.cols -= random.Between(1, s.group - 1);
  }
  return s;
}

class LinearCodesTest : public BackendTest {
 protected:
  void SetUp() override {
    BackendTest::SetUp();
    if (!backend().host_memory()) GTEST_SKIP() << "no products with codes on this backend";
  }

  // |y - w . x| <= tolerance * |w| |x|, norms of the row and of the token.
  void Check(Random& random, const Shape& shape, uint32_t tokens) {
    SCOPED_TRACE(Text(shape) + ", tokens " + std::to_string(tokens));
    const CodedWeights w(random, shape);
    const uint32_t inputs = shape.cols, outputs = shape.rows;
    const Shared<float> x = random.Normals(size_t{tokens} * inputs);
    Output<float> y(size_t{tokens} * outputs), twice(y.size());
    std::fill_n(twice.data(), twice.size(), 2.0f);
    backend().Linear({.x = x.data(), .tokens = tokens, .weight = w.view, .y = y.data()});
    backend().Linear(
        {.x = x.data(), .tokens = tokens, .weight = w.view, .y = twice.data(), .accumulate = true});
    EXPECT_TRUE(y.MarginsUntouched());
    for (uint32_t t = 0; t < tokens; ++t) {
      for (uint32_t o = 0; o < outputs; ++o) {
        double sum = 0, ww = 0, xx = 0;
        for (uint32_t i = 0; i < inputs; ++i) {
          const double a = w.values[size_t{o} * inputs + i], b = x[size_t{t} * inputs + i];
          sum += a * b, ww += a * a, xx += b * b;
        }
        const double allowed = 3e-5 * std::sqrt(ww * xx) + 1e-30;
        const size_t at = size_t{t} * outputs + o;
        ASSERT_LE(std::fabs(y[at] - sum), allowed) << "token " << t << " output " << o;
        ASSERT_EQ(twice[at], 2.0f + y[at]) << "token " << t << " output " << o;
      }
    }
  }
};
SPARSEKV_ON_EVERY_BACKEND(LinearCodesTest);

TEST_P(LinearCodesTest, RandomShapes) {
  Random random(21);
  for (int round = 0; round < 150; ++round)
    Check(random, RandomShape(random), random.Between(1, 9));
}

TEST_P(LinearCodesTest, ShapesOfCheckpoints) {
  Random random(22);
  for (uint32_t tokens : {1u, 2u, 33u}) {
    for (Encoding encoding : {Encoding::kInt4, Encoding::kInt8}) {
      Check(random, {encoding, 70, 1024, 128}, tokens);
      Check(random, {.encoding = encoding, .rows = 48, .cols = 2048, .group = 2048}, tokens);
      Check(random, {.encoding = encoding, .cols = 512, .group = 32, .order = true}, tokens);
    }
    Check(random, {Encoding::kFp8, 200, 320, 128, 128}, tokens);
    Check(random, {Encoding::kFp8, 50, 2048, 2048, 50}, tokens);
    Check(random, {Encoding::kFp8, 50, 2048, 2048, 1}, tokens);
  }
}

TEST_P(LinearCodesTest, RowsDecodeToWhatTheCodesMean) {
  Random random(23);
  for (int round = 0; round < 60; ++round) {
    const Shape shape = RandomShape(random);
    SCOPED_TRACE(Text(shape));
    const CodedWeights w(random, shape);
    Output<float> row(shape.cols);
    for (uint32_t o = 0; o < shape.rows; ++o) {
      DecodeRow(w.view, o, row.data());
      ExpectSameBits(row.data(), w.values.data() + size_t{o} * shape.cols, shape.cols, "row");
    }
    EXPECT_TRUE(row.MarginsUntouched());
  }
}

// A range of rows is a matrix of its own: Phi-3 keeps q, k and v in one.
TEST_P(LinearCodesTest, RangesOfRows) {
  Random random(24);
  int ranges = 0;
  for (int round = 0; round < 60; ++round) {
    const Shape shape = RandomShape(random);
    SCOPED_TRACE(Text(shape));
    const CodedWeights w(random, shape);
    const Shared<float> x = random.Normals(shape.cols);
    Output<float> whole(shape.rows);
    backend().Linear({.x = x.data(), .tokens = 1, .weight = w.view, .y = whole.data()});
    for (uint32_t first = 0; first < shape.rows; ++first) {
      if (!CanBeginAt(w.view, first)) continue;
      const uint32_t rows = random.Between(1, shape.rows - first);
      Output<float> part(rows);
      backend().Linear(
          {.x = x.data(), .tokens = 1, .weight = RowRange(w.view, first, rows), .y = part.data()});
      ExpectSameBits(part.data(), whole.data() + first, rows, "range");
      EXPECT_TRUE(part.MarginsUntouched());
      ++ranges;
    }
  }
  EXPECT_GT(ranges, 100);
}

// Products that share their input are computed together: to the bits of each by itself.
TEST_P(LinearCodesTest, SeveralProductsOfOneInput) {
  Random random(25);
  for (int round = 0; round < 60; ++round) {
    const uint32_t count = random.Between(1, 6), tokens = random.Pick({1u, 1u, 2u, 5u, 11u});
    const bool integers = random.Pick({false, true, true});
    const uint32_t cols = 64 * random.Between(1, 6);
    std::vector<std::unique_ptr<CodedWeights>> weights;
    std::vector<Output<float>> alone, together;
    std::vector<ProjectArgs::Output> outputs;
    for (uint32_t i = 0; i < count; ++i) {
      Shape shape = RandomShape(random);
      if (integers && shape.encoding == Encoding::kFp8) shape.encoding = Encoding::kInt4;
      shape.cols = cols;
      shape.group = random.Pick({32u, 64u, cols});
      weights.push_back(std::make_unique<CodedWeights>(random, shape));
      alone.emplace_back(size_t{tokens} * shape.rows);
      together.emplace_back(size_t{tokens} * shape.rows);
    }
    const Weights norm(random, DType::kF32, 1, cols, 1.0f);
    const Shared<float> x = random.Normals(size_t{tokens} * cols);
    Output<float> normed(x.size());
    backend().RmsNorm({.x = x.data(), .tokens = tokens, .weight = norm.view, .out = normed.data()});
    for (uint32_t i = 0; i < count; ++i) {
      const WeightView& w = weights[i]->view;
      outputs.push_back({w, together[i].data()});
      backend().Linear({.x = normed.data(), .tokens = tokens, .weight = w, .y = alone[i].data()});
    }
    backend().Project({.x = x.data(),
                       .tokens = tokens,
                       .norm = norm.view,
                       .normed = normed.data(),
                       .outputs = outputs});
    for (uint32_t i = 0; i < count; ++i) {
      ExpectSameBits(together[i].data(), alone[i].data(), alone[i].size(), "product");
      EXPECT_TRUE(together[i].MarginsUntouched());
    }
  }
}

TEST_P(LinearCodesTest, EveryFloat8) {
  for (int bits = 0; bits < 256; ++bits) {
    const auto code = static_cast<uint8_t>(bits);
    if ((bits & 0x7F) == 0x7F) {
      EXPECT_TRUE(std::isnan(FromE4M3(code)));
      continue;
    }
    const float scale = 1.0f;
    Shared<uint8_t> codes(32);
    codes[3] = code;
    Shared<float> x(32), y(1);
    x[3] = 1;
    const WeightView w = {
        .data = codes.data(), .rows = 1, .cols = 32, .coding = {Encoding::kFp8, 32, 1, &scale}};
    backend().Linear({.x = x.data(), .tokens = 1, .weight = w, .y = y.data()});
    EXPECT_EQ(y[0], FromE4M3(code)) << bits;
  }
  EXPECT_EQ(FromE4M3(0x7E), 448.0f);
  EXPECT_EQ(FromE4M3(0x01), 0x1p-9f);
  EXPECT_EQ(FromE4M3(0x80 | 0x38), -1.0f);
}

// A token's bits depend on the token alone.
TEST_P(LinearCodesTest, Invariance) {
  Random random(24);
  const uint32_t tokens = 53;
  for (int round = 0; round < 12; ++round) {
    Shape shape = RandomShape(random);
    if (round < 3) {
      shape = {.encoding = std::array{Encoding::kInt4, Encoding::kInt8, Encoding::kFp8}[round],
               .rows = 60,
               .cols = 1280,
               .group = 128,
               .block_rows = 128};
    }
    SCOPED_TRACE(Text(shape));
    const CodedWeights w(random, shape);
    const Shared<float> x = random.Normals(size_t{tokens} * shape.cols);
    const auto run = [&](Backend& on, uint32_t first, uint32_t count) {
      Output<float> y(size_t{count} * shape.rows);
      on.Linear({.x = x.data() + size_t{first} * shape.cols,
                 .tokens = count,
                 .weight = w.view,
                 .y = y.data()});
      return y;
    };
    const Output<float> whole = run(backend(), 0, tokens);
    const Output<float> again = run(other(), 0, tokens);
    ExpectSameBits(again.data(), whole.data(), whole.size(), "other threads");
    for (uint32_t chunk : {1u, 2u, 3u, 4u, 5u, 7u, 8u, 9u, 40u}) {
      const uint32_t first = random.Between(0, tokens - chunk);
      const Output<float> part = run(backend(), first, chunk);
      ExpectSameBits(part.data(), whole.data() + size_t{first} * shape.rows, part.size(), "chunk");
    }
  }
}

// Zero, tiny and huge inputs, and what is no number, which must not become one.
TEST_P(LinearCodesTest, SpecialInputs) {
  Random random(25);
  const float infinity = std::numeric_limits<float>::infinity();
  for (Encoding encoding : {Encoding::kInt4, Encoding::kInt8, Encoding::kFp8}) {
    const CodedWeights w(random, {.encoding = encoding, .rows = 20, .cols = 256, .group = 128});
    const auto run = [&](float at_3, float rest) {
      Shared<float> x(256, rest), y(20);
      x[3] = at_3;
      backend().Linear({.x = x.data(), .tokens = 1, .weight = w.view, .y = y.data()});
      return y;
    };
    for (float y : run(0, 0)) EXPECT_EQ(y, 0.0f);
    for (float y : run(1e-38f, 1e-39f)) EXPECT_LE(std::fabs(y), 1e-30f);
    const Shared<float> huge = run(1e36f, 0.0f);
    for (uint32_t o = 0; o < 20; ++o) {
      const float expected = w.values[o * 256 + 3] * 1e36f;
      EXPECT_NEAR(huge[o], expected, 1e-5f * std::fabs(expected));
    }
    for (float y : run(std::nanf(""), 1)) EXPECT_TRUE(std::isnan(y));
    for (float y : run(infinity, 1)) EXPECT_FALSE(std::isfinite(y));
  }
}

}  // namespace
}  // namespace sparsekv::testing
