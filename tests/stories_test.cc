// A really trained checkpoint against figures from the program that it was trained for
// (../shared/data/stories260k, PROVENANCE.md there). Skips where the data is absent.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "coordinator/tokenizer/tokenizer.h"
#include "gpu_worker/local_runner.h"

namespace sparsekv {
namespace {

const std::string kData = std::string(SPARSEKV_SOURCE_DIR) + "/../shared/data/stories260k";

template <typename T>
std::vector<T> ParseNumbers(const std::string& line) {
  std::istringstream in(line);
  std::vector<T> values;
  for (T value; in >> value;) values.push_back(value);
  return values;
}

std::vector<std::string> ReadLines(const std::string& path) {
  std::ifstream file(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

class StoriesTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(kData)) GTEST_SKIP() << "no " << kData;
    auto files = ModelFiles::Load(kData + "/hf", "");
    ASSERT_TRUE(files.ok()) << files.status();
    files_ = *std::move(files);
  }
  std::unique_ptr<LocalRunner> Runner() {
    return *LocalRunner::Make(files_, {.max_tokens = 512, .chunk_tokens = 512});
  }
  ModelFiles files_;
};

TEST_F(StoriesTest, GreedyContinuationAndLastLogits) {
  const auto lines = ReadLines(kData + "/golden/greedy256.ids_and_last_logits.txt");
  ASSERT_GE(lines.size(), 3u);
  const auto golden_ids = ParseNumbers<uint32_t>(lines[0]);
  const auto golden_logits = ParseNumbers<double>(lines[2]);
  ASSERT_EQ(golden_ids.size(), 255u);
  ASSERT_EQ(golden_logits.size(), 512u);

  auto tokenizer = Tokenizer::Load(kData + "/hf");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  auto ids = *(*tokenizer)->Encode("Once upon a time");
  auto runner = Runner();
  runner->Forward(ids, RowBudget{});
  const float* logits = runner->Logits(static_cast<uint32_t>(ids.size()) - 1);
  while (ids.size() < golden_ids.size()) {
    ids.push_back(static_cast<uint32_t>(std::max_element(logits, logits + 512) - logits));
    runner->Forward({&ids.back(), 1}, RowBudget{});
    logits = runner->Logits(0);
  }
  EXPECT_EQ(ids, golden_ids);
  for (size_t i = 0; i < 512; ++i) EXPECT_NEAR(logits[i], golden_logits[i], 1e-3) << i;
}

// Mean negative log-likelihood over separate windows of 512 ids; each id but a window's first
// counts.
double MeanNll(LocalRunner& runner, const std::vector<uint32_t>& ids, size_t* scored) {
  double sum = 0;
  *scored = 0;
  for (size_t from = 0; from < ids.size(); from += 512) {
    const auto window = std::span(ids).subspan(from, std::min<size_t>(512, ids.size() - from));
    runner.Reset();
    runner.Forward(window, RowBudget{});
    for (uint32_t t = 0; t + 1 < window.size(); ++t) {
      const float* logits = runner.Logits(t);
      const double max = *std::max_element(logits, logits + 512);
      double mass = 0;
      for (size_t i = 0; i < 512; ++i) mass += std::exp(logits[i] - max);
      sum += max + std::log(mass) - logits[window[t + 1]];
      ++*scored;
    }
  }
  return sum / static_cast<double>(*scored);
}

TEST_F(StoriesTest, NegativeLogLikelihoods) {
  const struct {
    const char* ids;
    size_t scored;
    double nll;
  } cases[] = {{"tinystories_sample", 1879, 1.823277}, {"bible20k", 11034, 4.214095}};
  auto runner = Runner();
  for (const auto& c : cases) {
    const auto lines = ReadLines(kData + "/golden/" + c.ids + ".ids.txt");
    ASSERT_FALSE(lines.empty());
    size_t scored = 0;
    const double nll = MeanNll(*runner, ParseNumbers<uint32_t>(lines[0]), &scored);
    EXPECT_EQ(scored, c.scored) << c.ids;
    EXPECT_NEAR(nll, c.nll, 5e-5) << c.ids;
    std::printf("%s: mean nll %.6f over %zu ids, golden %.6f\n", c.ids, nll, scored, c.nll);
  }
}

}  // namespace
}  // namespace sparsekv
