// Promise P2 on checkpoints whose answers mean something: 16,384 tokens of the recall checkpoint
// with extra layers, and deploy/demo. Every combination of prediction, direct and gather, hot rows,
// placement and a simulated link, alone and in a batch of 4, gives the tokens and selections of
// rows attended where they lie. And what is lost without correction, as a figure.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "coordinator/tokenizer/tokenizer.h"
#include "gpu_worker/local_runner.h"
#include "tests/chase.h"

namespace sparsekv {
namespace {

constexpr uint32_t kBatch = 4;

struct Way {
  std::string name;
  RowMode rows;
  RowPlacement placement = RowPlacement::kOffload;
  LinkSpec link;
  bool gather = false;
};

std::vector<Way> Ways(uint32_t budget) {
  std::vector<Way> ways = {
      {.name = "resident", .rows = {.in_place = false}, .placement = RowPlacement::kResident}};
  for (uint32_t hot : {0u, budget, 2 * budget}) {
    for (int serving = 0; serving < 3; ++serving) {  // no prediction, direct, gather
      for (bool link : {false, true}) {
        Way way{.rows = {.in_place = false, .hot_rows = hot, .predict = serving > 0},
                .gather = serving == 2};
        if (link) way.link = {.bytes_per_s = 400e6, .latency_s = 20e-6};
        way.name = "hot rows " + std::to_string(hot) +
                   (serving == 0   ? ""
                    : serving == 1 ? ", predicted direct"
                                   : ", predicted by gather") +
                   (link ? ", link" : "");
        ways.push_back(way);
      }
    }
  }
  return ways;
}

std::vector<LayerPolicy> Policies(uint32_t layers, bool predict, bool uncorrected) {
  std::vector<LayerPolicy> policies(layers, {predict, 125, uncorrected});
  policies[0].predict = false;
  return policies;
}

struct Outcome {
  std::vector<std::vector<uint32_t>> tokens;  // by sequence
  std::map<std::array<uint32_t, 4>, std::vector<uint32_t>> selections;
  LayerCounts last_layer;

  friend bool operator==(const Outcome& a, const Outcome& b) {
    return a.tokens == b.tokens && a.selections == b.selections;
  }
};

// Prompts computed once; every way goes on from there.
class Stage {
 public:
  Stage(const ModelFiles& files, std::vector<std::vector<uint32_t>> prompts, uint32_t budget,
        uint32_t steps)
      : files_(files), budget_(budget), steps_(steps) {
    for (const auto& prompt : prompts) {
      longest_ = std::max(longest_, static_cast<uint32_t>(prompt.size()));
    }
    base_ = Make({}, kBatch);
    for (uint32_t s = 0; s < kBatch; ++s) {
      first_.push_back(Highest(base_->Prefill(s, prompts[s])));
    }
  }

  std::unique_ptr<LocalRunner> Make(const Way& way, uint32_t sequences) const {
    auto runner = LocalRunner::Make(files_, {.max_tokens = longest_ + steps_,
                                             .sequences = sequences,
                                             .rows = way.rows,
                                             .placement = way.placement,
                                             .selection = budget_,
                                             .link = way.link,
                                             .gather = way.gather});
    EXPECT_TRUE(runner.ok()) << runner.status();
    return *std::move(runner);
  }

  Outcome Run(const Way& way, uint32_t sequences, bool uncorrected = false) const {
    auto runner = Make(way, sequences);
    runner->CopyFrom(*base_);
    runner->device().attention->set_policies(
        Policies(files_.config.layers, way.rows.predict, uncorrected));
    Outcome outcome;
    uint32_t step = 0;
    runner->device().attention->set_selection_hook([&](uint32_t layer, uint32_t item, uint32_t head,
                                                       bool predicted, std::span<uint32_t> list) {
      if (predicted) return;
      outcome.selections[{step, layer, item, head}] = {list.begin(), list.end()};
    });
    std::vector<uint32_t> next = first_;
    for (uint32_t s = 0; s < sequences; ++s) outcome.tokens.push_back({next[s]});
    for (; step < steps_; ++step) {
      std::vector<LocalRunner::Step> steps;
      for (uint32_t s = 0; s < sequences; ++s) {
        steps.push_back({s, {&next[s], 1}, {.rows = budget_}});
      }
      runner->ForwardBatch(steps);
      const std::vector<uint32_t> before = next;
      for (uint32_t s = 0; s < sequences; ++s) {
        next[s] = Highest(runner->Logits(s));
        outcome.tokens[s].push_back(next[s]);
      }
    }
    outcome.last_layer = runner->device().attention->counts().back();
    return outcome;
  }

  void ExpectOneOutcome() const {
    for (uint32_t sequences : {1u, kBatch}) {
      const Outcome expected = Run({}, sequences);
      for (const Way& way : Ways(budget_)) {
        const Outcome outcome = Run(way, sequences);
        EXPECT_TRUE(outcome == expected) << way.name << ", batch of " << sequences;
        if (way.rows.predict) {
          EXPECT_GT(outcome.last_layer.rows.prefetched + outcome.last_layer.cut, 0u) << way.name;
        }
      }
    }
  }

 private:
  uint32_t Highest(const float* logits) const {
    return static_cast<uint32_t>(std::max_element(logits, logits + files_.config.vocab_size) -
                                 logits);
  }

  const ModelFiles& files_;
  const uint32_t budget_, steps_;
  uint32_t longest_ = 0;
  std::unique_ptr<LocalRunner> base_;
  std::vector<uint32_t> first_;
};

size_t Right(const std::vector<uint32_t>& tokens, const std::vector<uint32_t>& expected) {
  size_t right = 0;
  while (right < expected.size() && right < tokens.size() && tokens[right] == expected[right]) {
    ++right;
  }
  return right;
}

TEST(PlacementTest, RecallCheckpointAt16K) {
  testing::ScratchDir dir;
  const auto [prompt, expected] =
      testing::MakeChase(dir.path(), {"--context", "16384", "--hops", "24", "--extra-layers", "3",
                                      "--kv-heads", "2", "--group", "2", "--dtype", "bfloat16"});
  auto files = ModelFiles::Load(dir.path(), "");
  ASSERT_TRUE(files.ok()) << files.status();
  // The same chase, from later and later in its context.
  std::vector<std::vector<uint32_t>> prompts;
  for (uint32_t s = 0; s < kBatch; ++s)
    prompts.emplace_back(prompt.begin() + 512 * s, prompt.end());
  const Stage stage(*files, prompts, 1024, 23);
  EXPECT_EQ(Right(stage.Run({}, 1).tokens[0], expected), 24u);
  stage.ExpectOneOutcome();

  const Way way{.rows = {.in_place = false, .hot_rows = 2048, .predict = true}};
  const size_t without = Right(stage.Run(way, 1, /*uncorrected=*/true).tokens[0], expected);
  std::printf("recall checkpoint, 16,384 tokens, 1,024 rows: chase of 24 corrected, %zu not\n",
              without);
}

// Facts with a number each, asked for at the end: what deploy/demo was trained to answer.
std::string Lookups(uint32_t facts, uint32_t asked) {
  static const char* const kThings[] = {"candle", "garden", "window", "bottle", "ladder", "basket",
                                        "mirror", "hammer", "pillow", "carpet", "button", "wallet"};
  std::string text;
  for (uint32_t i = 0; i < facts; ++i) {
    text += "The number of " + std::string(kThings[i % 12]) + " is " +
            std::to_string(10000 + (i * 7919 + 123) % 90000) + ".\n";
    text += "Once upon a time there was a little dog who liked to play in the park all day.\n";
  }
  return text + "The number of " + kThings[asked] + " is";
}

TEST(PlacementTest, DemoCheckpoint) {
  const std::string dir = std::string(SPARSEKV_SOURCE_DIR) + "/deploy/demo";
  auto files = ModelFiles::Load(dir, "");
  ASSERT_TRUE(files.ok()) << files.status();
  auto tokenizer = Tokenizer::Load(dir);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  std::vector<std::vector<uint32_t>> prompts;
  for (uint32_t s = 0; s < kBatch; ++s)
    prompts.push_back(*(*tokenizer)->Encode(Lookups(12, 3 * s)));
  const Stage stage(*files, prompts, 128, 20);
  stage.ExpectOneOutcome();

  const Way way{.rows = {.in_place = false, .hot_rows = 256, .predict = true}};
  const Outcome truth = stage.Run({}, kBatch), without = stage.Run(way, kBatch, true);
  size_t same = 0, all = 0;
  for (uint32_t s = 0; s < kBatch; ++s) {
    same += Right(without.tokens[s], truth.tokens[s]);
    all += truth.tokens[s].size();
  }
  std::printf("deploy/demo, %zu tokens, 128 rows: %zu of %zu tokens the same without correction\n",
              prompts[0].size(), same, all);
}

}  // namespace
}  // namespace sparsekv
