#include <gtest/gtest.h>

#include "kernels/test_cases.h"

namespace sparsekv::testing {
namespace {

constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

class MatrixTest : public BackendTest {
 protected:
  void CheckLinear(Random& random, DType dtype, uint32_t tokens, uint32_t inputs,
                   uint32_t outputs) {
    SCOPED_TRACE(std::string(Name(dtype)) + " " + std::to_string(tokens) + " tokens, " +
                 std::to_string(inputs) + " -> " + std::to_string(outputs));
    const Weights weight(random, dtype, outputs, inputs, 1 / std::sqrt(static_cast<float>(inputs)),
                         /*skip=*/random.Pick({0u, random.Between(1, 7)}));
    const Shared<float> x = random.Normals(size_t{tokens} * inputs);
    Output<float> once(size_t{tokens} * outputs);
    LinearArgs args{.x = x.data(), .tokens = tokens, .weight = weight.view, .y = once.data()};
    reference().Linear(args);
    // Adding the product to itself.
    Output<float> twice = once;
    args.y = twice.data();
    args.accumulate = true;
    reference().Linear(args);
    for (StepKind kind : Kinds()) {
      Output<float> got(once.size());
      args.y = got.data();
      args.accumulate = false;
      InStep(backend(), kind, [&] { backend().Linear(args); });
      ExpectNear(got, once, ProductTolerance(1e-5f, kind));
      args.accumulate = true;
      InStep(backend(), kind, [&] { backend().Linear(args); });
      ExpectNear(got, twice, ProductTolerance(2e-5f, kind));
    }
  }
};
SPARSEKV_ON_EVERY_BACKEND(MatrixTest);

TEST_P(MatrixTest, EmbedCopiesRows) {
  Random random(1);
  for (DType dtype : kDTypes) {
    for (uint32_t hidden : {1u, 7u, 64u, 133u}) {
      const Weights table(random, dtype, 50, hidden, 1.0f);
      std::vector<uint32_t> ids(random.Between(1, 20));
      for (uint32_t& id : ids) id = random.Between(0, 49);
      Output<float> got(ids.size() * hidden);
      Output<float> expected(ids.size() * hidden);
      backend().Embed({.ids = ids, .table = table.view, .out = got.data()});
      reference().Embed({.ids = ids, .table = table.view, .out = expected.data()});
      EXPECT_TRUE(got.MarginsUntouched());
      ExpectSameBits(got.data(), expected.data(), got.size(), "embedding");
    }
  }
}

TEST_P(MatrixTest, RmsNorm) {
  Random random(2);
  for (DType dtype : kDTypes) {
    for (uint32_t hidden : {1u, 15u, 64u, 130u, 1024u}) {
      const uint32_t tokens = random.Between(1, 9);
      const Weights weight(random, dtype, 1, hidden, 1.0f);
      Shared<float> x = random.Normals(size_t{tokens} * hidden, 3.0f);
      Output<float> got(x.size());
      Output<float> expected(x.size());
      RmsNormArgs args{.x = x.data(), .tokens = tokens, .weight = weight.view, .out = got.data()};
      backend().RmsNorm(args);
      args.out = expected.data();
      reference().RmsNorm(args);
      ExpectNear(got, expected, Tolerance(1e-5f, 2e-5f));
      args.out = x.data();  // in place
      backend().RmsNorm(args);
      ExpectSameBits<float>(x.data(), got.data(), x.size(), "in place");
    }
  }
}

TEST_P(MatrixTest, LinearOfRandomShapes) {
  Random random(3);
  for (int round = 0; round < 40; ++round) {
    CheckLinear(random, random.Pick({DType::kF32, DType::kF16, DType::kBF16}),
                random.Between(1, 40), random.Between(1, 200), random.Between(1, 90));
  }
}

TEST_P(MatrixTest, LinearOverSeveralBlocks) {
  Random random(4);
  for (DType dtype : kDTypes) {
    CheckLinear(random, dtype, 1, 2176, 75);    // weights as they lie
    CheckLinear(random, dtype, 101, 2064, 29);  // blocks of tokens and inputs
    CheckLinear(random, dtype, 3, 1025, 26);    // a tail of one
  }
}

TEST_P(MatrixTest, LinearOfBatchesAndChunks) {
  Random random(7);
  CheckLinear(random, DType::kBF16, 1, 4096, 96);
  CheckLinear(random, DType::kF16, 3, 1000, 130);
  CheckLinear(random, DType::kBF16, 8, 2048, 40);
  CheckLinear(random, DType::kBF16, 16, 4096, 40);
  CheckLinear(random, DType::kBF16, 17, 136, 72);
  CheckLinear(random, DType::kF16, 64, 512, 72);
  CheckLinear(random, DType::kBF16, 300, 264, 48);
}

// Where rounding changes no input, every way to compute is exact but for the order of the sum.
TEST_P(MatrixTest, LinearOfInputsInTheWeightsType) {
  Random random(8);
  for (DType dtype : {DType::kF16, DType::kBF16}) {
    for (uint32_t tokens : {1u, 5u, 64u}) {
      const uint32_t inputs = 520, outputs = 64;
      const Weights weight(random, dtype, outputs, inputs, 1 / std::sqrt(float{inputs}));
      Shared<float> x = random.Normals(size_t{tokens} * inputs);
      for (float& value : x) value = Rounded(value, dtype);
      Output<float> expected(size_t{tokens} * outputs);
      LinearArgs args{.x = x.data(), .tokens = tokens, .weight = weight.view, .y = expected.data()};
      reference().Linear(args);
      for (StepKind kind : Kinds()) {
        Output<float> got(expected.size());
        args.y = got.data();
        InStep(backend(), kind, [&] { backend().Linear(args); });
        ExpectNear(got, expected, Tolerance(1e-5f, 1e-4f));
      }
    }
  }
}

// CudaOptions::exact_prompts: a prompt's products are as near as those of decode steps, whole
// pieces and others, added to what is there or not.
TEST_P(MatrixTest, ExactPrompts) {
  if (!cuda()) GTEST_SKIP() << "host backends round nothing";
  std::string why;
  const auto exact = MakeCudaBackend({.exact_prompts = true}, &why);
  ASSERT_NE(exact, nullptr) << why;
  Random random(9);
  for (DType dtype : kDTypes) {
    for (uint32_t tokens : {70u, 512u, 600u}) {
      const uint32_t inputs = 264, outputs = 72;
      const Weights weight(random, dtype, outputs, inputs, 1 / std::sqrt(float{inputs}));
      const Shared<float> x = random.Normals(size_t{tokens} * inputs);
      Output<float> expected(size_t{tokens} * outputs), got(expected.size());
      for (bool accumulate : {false, true}) {
        LinearArgs args{.x = x.data(),
                        .tokens = tokens,
                        .weight = weight.view,
                        .y = expected.data(),
                        .accumulate = accumulate};
        reference().Linear(args);
        args.y = got.data();
        InStep(*exact, StepKind::kPrompt, [&] { exact->Linear(args); });
        ExpectNear(got, expected, ProductTolerance(0, StepKind::kDecode));
      }
    }
  }
}

TEST_P(MatrixTest, LinearKeepsSpecialValues) {
  // Subnormal, largest and signed zero weights come through the widening.
  for (DType dtype : kDTypes) {
    Shared<std::byte> bytes(16 * SizeOf(dtype));
    const float largest = dtype == DType::kF16 ? 65504.0f : 1e38f;
    const float values[] = {6e-8f, -6e-8f, largest, -largest, 0.0f, -0.0f, 1.0f, -1.5f};
    for (size_t i = 0; i < 8; ++i) StoreValue(bytes.data(), i, dtype, values[i]);
    for (size_t i = 8; i < 16; ++i) StoreValue(bytes.data(), i, dtype, 0);
    for (StepKind kind : Kinds()) {
      if (cuda() && kind == StepKind::kPrompt && dtype == DType::kF32) continue;  // rounded there
      for (size_t i = 0; i < 8; ++i) {
        Shared<float> x(16), y(1);
        x[i] = 1;
        const LinearArgs args = {
            .x = x.data(), .tokens = 1, .weight = {bytes.data(), dtype, 1, 16}, .y = y.data()};
        InStep(backend(), kind, [&] { backend().Linear(args); });
        EXPECT_EQ(y[0], LoadValue(bytes.data(), i, dtype));
      }
    }
  }
}

TEST_P(MatrixTest, SwiGlu) {
  Random random(5);
  for (uint32_t width : {1u, 19u, 64u, 40000u}) {
    const uint32_t tokens = random.Between(1, 3);
    const size_t count = size_t{tokens} * width;
    Shared<float> gate = random.Normals(count, 8.0f);
    const Shared<float> up = random.Normals(count);
    gate[0] = width == 1 ? 0.0f : -300.0f;
    Output<float> got(count);
    Output<float> expected(count);
    std::copy(gate.begin(), gate.end(), got.data());
    std::copy(gate.begin(), gate.end(), expected.data());
    backend().SwiGlu({.gate = got.data(), .up = up.data(), .tokens = tokens, .width = width});
    reference().SwiGlu(
        {.gate = expected.data(), .up = up.data(), .tokens = tokens, .width = width});
    ExpectNear(got, expected, Tolerance(2e-6f, 1e-5f));
  }
}

TEST_P(MatrixTest, RopeTurnsPairs) {
  Random random(6);
  for (uint32_t head_dim : {2u, 8u, 64u, 256u}) {
    std::vector<float> frequency(head_dim / 2);
    for (size_t c = 0; c < frequency.size(); ++c) {
      frequency[c] = std::pow(500000.0f, -2.0f * static_cast<float>(c) / head_dim);
    }
    const uint32_t heads = random.Between(1, 5);
    std::vector<uint32_t> positions = {0, 1, random.Between(2, 100000), kMaxContext - 1};
    for (int round = 0; round < 3; ++round) {  // the second round meets the first's table
      const size_t count = positions.size() * heads * head_dim;
      const Shared<float> x = random.Normals(count);
      Output<float> got(count);
      Output<float> expected(count);
      std::copy(x.begin(), x.end(), got.data());
      std::copy(x.begin(), x.end(), expected.data());
      RopeArgs args{.x = got.data(),
                    .positions = positions,
                    .inverse_frequency = frequency,
                    .heads = heads,
                    .head_dim = head_dim};
      backend().Rope(args);
      args.x = expected.data();
      reference().Rope(args);
      ExpectNear(got, expected, Tolerance(1e-6f, 5e-6f));
      if (round == 1) positions[2] += 1;
    }
  }
}

}  // namespace
}  // namespace sparsekv::testing
