// Every family against what transformers computes of it: dense, in chunks and token by token, on
// both host backends, with float32 and bfloat16 weights.
#include <gtest/gtest.h>

#include <cmath>

#include "family_checkpoint.h"
#include "gpu_worker/local_runner.h"

namespace sparsekv {
namespace {

using testing::FamilyCheckpoint;
using testing::FamilyGolden;

class FamiliesTest : public ::testing::TestWithParam<std::string> {
 protected:
  // The largest difference to the golden logits.
  static double Worst(const ModelFiles& files, const FamilyGolden& golden,
                      const std::vector<float>& expected, uint32_t chunk, BackendKind backend) {
    const auto tokens = static_cast<uint32_t>(golden.ids.size());
    const uint32_t vocab = files.config.vocab_size;
    EXPECT_EQ(expected.size(), golden.positions.size() * vocab);
    auto runner = LocalRunner::Make(
        files, {.max_tokens = tokens, .chunk_tokens = chunk, .threads = 2, .backend = backend});
    EXPECT_TRUE(runner.ok()) << runner.status();
    double worst = 0;
    size_t row = 0;
    for (uint32_t from = 0; from < tokens; from += chunk) {
      const uint32_t count = std::min(chunk, tokens - from);
      (*runner)->Forward(std::span(golden.ids).subspan(from, count), RowBudget{});
      for (; row < golden.positions.size() && golden.positions[row] < from + count; ++row) {
        const float* logits = (*runner)->Logits(golden.positions[row] - from);
        for (uint32_t i = 0; i < vocab; ++i) {
          const double difference = std::fabs(logits[i] - expected[row * vocab + i]);
          worst = std::isnan(difference) ? HUGE_VAL : std::max(worst, difference);
        }
      }
    }
    EXPECT_EQ(row, golden.positions.size());
    return worst;
  }
};

TEST_P(FamiliesTest, LogitsAreThoseOfTransformers) {
  const FamilyGolden golden = testing::ReadFamilyGolden(GetParam());
  ASSERT_GE(golden.positions.size(), 8u);
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    const bool single = dtype == DType::kF32;
    const FamilyCheckpoint checkpoint(GetParam(), dtype);
    const ModelFiles files = checkpoint.Load();
    EXPECT_EQ(files.weights->row_dtype(), dtype);
    const double allowed = single ? 5e-4 : 1.2 * golden.bfloat16_error;
    for (auto [chunk, backend] : {std::pair{96u, BackendKind::kCpu},
                                  {37u, BackendKind::kCpu},
                                  {1u, BackendKind::kCpu},
                                  {96u, BackendKind::kReference}}) {
      const double worst = Worst(files, golden, golden.logits[single ? 0 : 1], chunk, backend);
      EXPECT_LE(worst, allowed) << Name(dtype) << ", chunks of " << chunk;
      if (chunk != 96 || backend != BackendKind::kCpu) continue;
      std::printf("%s, %s: largest logit difference %.2e of %.2e\n", GetParam().c_str(),
                  std::string(Name(dtype)).c_str(), worst, allowed);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, FamiliesTest, ::testing::ValuesIn(testing::GoldenFamilies()),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace sparsekv
