// Small random checkpoints and their logits, both written by `transformers`
// (golden/make_llama_goldens.py, golden/make_quantized_goldens.py): prefill in chunks and token by
// token, both backends, float32 and bfloat16 weights.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "gpu_worker/local_runner.h"

namespace sparsekv {
namespace {

struct Golden {
  std::vector<uint32_t> ids, positions;
  std::vector<float> logits;  // [positions, vocab]
};

Golden ReadGolden(const std::string& dir) {
  Golden golden;
  const auto json = nlohmann::json::parse(std::ifstream(dir + "/golden_ids.json"));
  golden.ids = json["token_ids"].get<std::vector<uint32_t>>();
  golden.positions = json["positions"].get<std::vector<uint32_t>>();
  std::ifstream file(dir + "/golden_logits.npy", std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), {});
  const size_t header = static_cast<uint8_t>(bytes[8]) + 256 * static_cast<uint8_t>(bytes[9]);
  EXPECT_NE(bytes.find("'<f4'"), std::string::npos);
  golden.logits.resize((bytes.size() - 10 - header) / 4);
  std::memcpy(golden.logits.data(), bytes.data() + 10 + header, golden.logits.size() * 4);
  return golden;
}

class GoldenTest : public testing::TestWithParam<std::string> {};

TEST_P(GoldenTest, LogitsAgree) {
  const std::string dir = std::string(SPARSEKV_SOURCE_DIR) + "/tests/golden/" + GetParam();
  const Golden golden = ReadGolden(dir);
  ASSERT_GE(golden.positions.size(), 8u);
  auto files = ModelFiles::Load(dir, "");
  ASSERT_TRUE(files.ok()) << files.status();
  const uint32_t vocab = files->config.vocab_size;
  ASSERT_EQ(golden.logits.size(), golden.positions.size() * vocab);
  const uint32_t tokens = static_cast<uint32_t>(golden.ids.size());
  // The goldens of bfloat16 checkpoints are float32 arithmetic on the same weights; ours also
  // rounds token rows to bfloat16, as the checkpoint's type asks.
  // Matrices of codes: a thousandth of the logits' deviation, which is 2.
  const bool codes = files->weights->quantized() != nullptr;
  double tolerance = codes ? 2e-3 : 5e-4;
  if (files->weights->row_dtype() == DType::kF16) tolerance = 1e-2;
  if (files->weights->row_dtype() == DType::kBF16) tolerance = 5e-2;
  for (auto [chunk, reference] :
       {std::pair{tokens, false}, {37u, false}, {1u, false}, {tokens, true}}) {
    auto runner = LocalRunner::Make(
        *files, {.max_tokens = tokens,
                 .chunk_tokens = chunk,
                 .backend = reference ? BackendKind::kReference : BackendKind::kCpu});
    ASSERT_TRUE(runner.ok()) << runner.status();
    double worst = 0;
    size_t row = 0;
    for (uint32_t from = 0; from < tokens; from += chunk) {
      const uint32_t count = std::min(chunk, tokens - from);
      (*runner)->Forward(std::span(golden.ids).subspan(from, count), RowBudget{});
      for (; row < golden.positions.size() && golden.positions[row] < from + count; ++row) {
        const float* logits = (*runner)->Logits(golden.positions[row] - from);
        for (uint32_t i = 0; i < vocab; ++i) {
          worst = std::max<double>(worst, std::fabs(logits[i] - golden.logits[row * vocab + i]));
        }
      }
    }
    EXPECT_EQ(row, golden.positions.size());
    EXPECT_LE(worst, tolerance) << "chunks of " << chunk;
    std::printf("%s, %s, chunks of %u: largest logit difference %.2e\n", GetParam().c_str(),
                reference ? "reference" : "cpu", chunk, worst);
  }
}

std::string TestName(const testing::TestParamInfo<std::string>& test) {
  std::string name = test.param;
  std::ranges::replace(name, '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Llama, GoldenTest,
                         testing::Values("llama2-f32", "llama2-bf16", "llama3-f32", "llama3-bf16",
                                         "llama31-f32", "llama31-bf16"),
                         TestName);
INSTANTIATE_TEST_SUITE_P(Codes, GoldenTest,
                         testing::Values("gptq-int4-sym", "gptq-int4-act-order", "gptq-int8-asym",
                                         "gptq-int8-act-order", "awq-int4", "fp8-block",
                                         "fp8-tensor", "compressed-int8", "compressed-int4",
                                         "compressed-fp8"),
                         TestName);

}  // namespace
}  // namespace sparsekv
