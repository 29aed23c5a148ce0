// P1 and P2 on a CUDA device, on checkpoints whose answers mean something: the recall checkpoint at
// 16,384 and 131,072 tokens, and deploy/demo beside the cpu backend. Every way to keep and fetch
// rows, alone and in a batch, with graphs and without, gives the same logits to the bit.
#include <gtest/gtest.h>
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "cli/recall/recall.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "gpu_worker/local_runner.h"

namespace sparsekv {
namespace {

// A copy of the tree may lie elsewhere on the machine with the device.
std::string SourceDir() {
  const char* dir = std::getenv("SPARSEKV_SOURCE_DIR");
  return dir ? dir : SPARSEKV_SOURCE_DIR;
}

struct Way {
  std::string name;
  RowMode rows;
  RowPlacement placement = RowPlacement::kOffload;
  bool graphs = true, early_launch = true, mirror = false;
};

std::vector<Way> Ways(uint32_t budget) {
  std::vector<Way> ways = {
      {.name = "resident", .rows = {.in_place = false}, .placement = RowPlacement::kResident},
      {.name = "resident, no graphs",
       .rows = {.in_place = false},
       .placement = RowPlacement::kResident,
       .graphs = false}};
  for (uint32_t hot : {0u, budget, 3 * budget}) {
    for (bool predict : {false, true}) {
      ways.push_back({.name = "hot rows " + std::to_string(hot) + (predict ? ", predicted" : ""),
                      .rows = {.in_place = false, .hot_rows = hot, .predict = predict}});
    }
  }
  ways.push_back({.name = "hot rows, predicted, no early launch",
                  .rows = {.in_place = false, .hot_rows = 2 * budget, .predict = true},
                  .early_launch = false});
  ways.push_back({.name = "hot rows, predicted, no graphs",
                  .rows = {.in_place = false, .hot_rows = 2 * budget, .predict = true},
                  .graphs = false});
  for (uint32_t hot : {0u, 2 * budget}) {
    ways.push_back({.name = "mirrored, predicted, hot rows " + std::to_string(hot),
                    .rows = {.in_place = false, .hot_rows = hot, .predict = true},
                    .mirror = true});
  }
  return ways;
}

struct Outcome {
  std::vector<std::vector<uint32_t>> tokens;  // by sequence
  std::vector<std::vector<uint64_t>> logits;  // hashes, likewise
  LayerCounts last_layer;
};

uint32_t Highest(const float* logits, uint32_t vocab) {
  return static_cast<uint32_t>(std::max_element(logits, logits + vocab) - logits);
}

// Prompts computed, then `steps` greedy steps with `budget` (0 = dense).
Outcome Generate(const ModelFiles& files, const Way& way,
                 std::span<const std::vector<uint32_t>> prompts, uint32_t budget, uint32_t steps) {
  uint32_t longest = 0;
  for (const auto& prompt : prompts) {
    longest = std::max(longest, static_cast<uint32_t>(prompt.size()));
  }
  auto runner = LocalRunner::Make(files, {.max_tokens = longest + steps,
                                          .sequences = static_cast<uint32_t>(prompts.size()),
                                          .chunk_tokens = 2048,
                                          .backend = BackendKind::kCuda,
                                          .graphs = way.graphs,
                                          .early_launch = way.early_launch,
                                          .mirror_rows = way.mirror,
                                          .rows = way.rows,
                                          .placement = way.placement,
                                          .selection = budget});
  EXPECT_TRUE(runner.ok()) << runner.status();
  Outcome outcome;
  if (!runner.ok()) return outcome;
  const uint32_t layers = files.config.layers, vocab = files.config.vocab_size;
  std::vector<LayerPolicy> policies(layers, {way.rows.predict, 125, false});
  policies[0].predict = false;
  (*runner)->device().attention->set_policies(policies);
  std::vector<uint32_t> next;
  for (uint32_t s = 0; s < prompts.size(); ++s) {
    next.push_back(Highest((*runner)->Prefill(s, prompts[s]), vocab));
    outcome.tokens.push_back({next[s]});
    outcome.logits.emplace_back();
  }
  for (uint32_t step = 0; step < steps; ++step) {
    std::vector<LocalRunner::Step> batch;
    for (uint32_t s = 0; s < prompts.size(); ++s) batch.push_back({s, {&next[s], 1}, {budget}});
    (*runner)->model().set_measure(step == 1);
    (*runner)->ForwardBatch(batch);
    const std::vector<uint32_t> fed = next;
    for (uint32_t s = 0; s < prompts.size(); ++s) {
      const float* logits = (*runner)->Logits(s);
      next[s] = Highest(logits, vocab);
      outcome.tokens[s].push_back(next[s]);
      outcome.logits[s].push_back(XXH3_64bits(logits, vocab * sizeof(float)));
    }
  }
  outcome.last_layer = (*runner)->device().attention->counts().back();
  return outcome;
}

size_t Right(const std::vector<uint32_t>& tokens, const std::vector<uint32_t>& expected) {
  const auto [end, other] = std::ranges::mismatch(tokens, expected);
  return static_cast<size_t>(end - tokens.begin());
}

class GpuCheckpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = WhyNoCuda(); !why.empty()) GTEST_SKIP() << why;
    dir_ = (std::filesystem::temp_directory_path() / "sparsekv-recall-XXXXXX").string();
    ASSERT_NE(mkdtemp(dir_.data()), nullptr);
  }
  void TearDown() override {
    if (!dir_.empty()) std::filesystem::remove_all(dir_);
  }

  // The chase of 24 hops with a budget of 1,024, on every way given.
  void CheckRecall(uint32_t context, std::span<const Way> ways, std::span<const uint32_t> batches) {
    auto made = MakeRecall(
        {.out = dir_,
         .context = context,
         .hops = 24,
         .model = {.kv_heads = 2, .group = 2, .extra_layers = 3, .dtype = DType::kBF16}});
    ASSERT_TRUE(made.ok()) << made.status();
    const auto chase = nlohmann::json::parse(std::ifstream(dir_ + "/chase.json"));
    const std::vector<uint32_t> prompt = chase["prompt_token_ids"];
    const std::vector<uint32_t> expected = chase["expected_token_ids"];
    auto files = ModelFiles::Load(dir_, "");
    ASSERT_TRUE(files.ok()) << files.status();
    std::vector<uint64_t> alone;
    for (const Way& way : ways) {
      for (uint32_t batch : batches) {
        std::vector<std::vector<uint32_t>> prompts;
        for (uint32_t s = 0; s < batch; ++s) {
          prompts.emplace_back(prompt.begin() + 512 * s, prompt.end());
        }
        const Outcome outcome = Generate(*files, way, prompts, 1024, 23);
        ASSERT_EQ(outcome.tokens.size(), batch) << way.name;
        EXPECT_EQ(Right(outcome.tokens[0], expected), 24u) << way.name << ", batch " << batch;
        if (alone.empty()) alone = outcome.logits[0];
        EXPECT_EQ(outcome.logits[0], alone) << way.name << ", batch " << batch;
        const RowCounts& rows = outcome.last_layer.rows;
        EXPECT_EQ(rows.selected, rows.hits + rows.useful + rows.missed) << way.name;
        if (way.rows.predict) {
          EXPECT_GT(rows.prefetched + outcome.last_layer.cut, 0u) << way.name;
        }
        if (way.placement == RowPlacement::kOffload) {
          EXPECT_GT(rows.fetched(), 0u) << way.name;
        }
        std::printf("%u tokens, %s, batch %u: selected %lu, hit %lu, useful %lu, missed %lu\n",
                    context, way.name.c_str(), batch, rows.selected, rows.hits, rows.useful,
                    rows.missed);
      }
    }
  }

  std::string dir_;
};

TEST_F(GpuCheckpointTest, RecallAt16K) {
  const auto ways = Ways(1024);
  const uint32_t batches[] = {1, 4};
  CheckRecall(16384, ways, batches);
}

TEST_F(GpuCheckpointTest, RecallAt128K) {
  const auto ways = Ways(1024);
  const uint32_t batches[] = {1};
  const Way few[] = {ways[0], ways[4], ways[7]};
  CheckRecall(131072, few, batches);
}

// P1: a budget that holds the whole context gives the tokens of dense attention.
TEST_F(GpuCheckpointTest, WholeBudgetIsDense) {
  auto files = ModelFiles::Load(SourceDir() + "/deploy/demo", "");
  ASSERT_TRUE(files.ok()) << files.status();
  std::vector<uint32_t> prompt(700);
  for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<uint32_t>(5 + i * i % 4000);
  const std::vector<std::vector<uint32_t>> prompts = {prompt};
  const Way resident = Ways(1024)[0];
  const Outcome dense = Generate(*files, resident, prompts, 0, 40);
  const Outcome sparse = Generate(*files, resident, prompts, 1024, 40);
  const Outcome offloaded = Generate(*files, Ways(1024)[4], prompts, 1024, 40);
  EXPECT_EQ(dense.tokens, sparse.tokens);
  EXPECT_EQ(dense.logits, sparse.logits);
  EXPECT_EQ(dense.logits, offloaded.logits);
}

// Logits after every token, teacher-forced: the highest token of each.
std::vector<uint32_t> TopOne(const ModelFiles& files, BackendKind backend,
                             const std::vector<uint32_t>& ids, uint32_t chunk, RowBudget budget,
                             bool exact_prompts) {
  const auto tokens = static_cast<uint32_t>(ids.size());
  auto runner = LocalRunner::Make(files, {.max_tokens = tokens,
                                          .chunk_tokens = chunk,
                                          .backend = backend,
                                          .exact_prompts = exact_prompts,
                                          .rows = {.in_place = backend != BackendKind::kCuda},
                                          .placement = RowPlacement::kResident,
                                          .selection = budget.dense() ? 0 : budget.At(tokens)});
  EXPECT_TRUE(runner.ok()) << runner.status();
  std::vector<uint32_t> top;
  for (size_t from = 0; runner.ok() && from < ids.size(); from += chunk) {
    const auto part = std::span(ids).subspan(from, std::min<size_t>(chunk, ids.size() - from));
    (*runner)->Forward(part, budget);
    for (uint32_t i = 0; i < part.size(); ++i) {
      top.push_back(Highest((*runner)->Logits(i), files.config.vocab_size));
    }
  }
  return top;
}

double Agreement(const std::vector<uint32_t>& a, const std::vector<uint32_t>& b) {
  size_t same = 0;
  for (size_t i = 0; i < a.size(); ++i) same += a[i] == b[i];
  return static_cast<double>(same) / static_cast<double>(a.size());
}

TEST_F(GpuCheckpointTest, DemoAgreesWithTheCpu) {
  const std::string demo = SourceDir() + "/deploy/demo";
  auto files = ModelFiles::Load(demo, "");
  ASSERT_TRUE(files.ok()) << files.status();
  auto tokenizer = Tokenizer::Load(demo);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  std::stringstream text;
  text << std::ifstream(demo + "/FIDELITY.md").rdbuf();
  std::vector<uint32_t> ids = *(*tokenizer)->Encode(text.str());
  ASSERT_GE(ids.size(), 4096u);
  ids.resize(4096);
  const struct {
    const char* name;
    uint32_t chunk;
    RowBudget budget;
    double least;
    std::optional<LabelFormat> labels = {};  // else the shipped ones
    bool exact_prompts = false;
  } cases[] = {
      // Most of a prompt's products round their inputs to the weights' 16 bits, as the cpu's do
      // not.
      {"prefill", 512, {}, 0.985},
      {"exact prefill", 512, {}, 0.995, {}, true},
      {"dense decode", 1, {}, 0.995},
      {"1/16 decode, bf16 labels", 1, {0, 16}, 0.995, LabelFormat::kBf16},
      // A key that is rounded the other way can change a label's codes, and so a selection.
      {"1/16 decode, the shipped labels", 1, {0, 16}, 0.99}};
  const LabelFormat shipped = files->channels->label_format;
  for (const auto& one : cases) {
    files->channels->label_format = one.labels.value_or(shipped);
    const auto cuda =
        TopOne(*files, BackendKind::kCuda, ids, one.chunk, one.budget, one.exact_prompts);
    const auto cpu = TopOne(*files, BackendKind::kCpu, ids, one.chunk, one.budget, false);
    ASSERT_EQ(cuda.size(), cpu.size());
    const double agreement = Agreement(cuda, cpu);
    std::printf("deploy/demo, %s: top-1 agreement of cuda and cpu %.2f %% of %zu\n", one.name,
                100 * agreement, cuda.size());
    EXPECT_GE(agreement, one.least) << one.name;
  }
}

}  // namespace
}  // namespace sparsekv
