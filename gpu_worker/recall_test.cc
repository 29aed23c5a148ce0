// Sampled recall and recall targets in the forward pass: what is reported is what the selections
// hold, sampling changes nothing, and a target gives the same bits wherever rows are, however they
// come there and in whatever company.
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>
#include <set>

#include "gpu_worker/local_runner.h"
#include "gpu_worker/random_checkpoint.h"

namespace sparsekv {
namespace {

constexpr uint32_t kPrompt = 600, kSteps = 24, kTokens = kPrompt + kSteps, kLayers = 4;

struct How {
  std::string name;
  RowMode rows;
  RowPlacement placement = RowPlacement::kOffload;
  LinkSpec link;
  bool gather = false;
  bool uncorrected = false;
};

std::vector<How> AllWays() {
  std::vector<How> ways = {{.name = "resident",
                            .rows = {.in_place = false, .predict = true},
                            .placement = RowPlacement::kResident}};
  for (uint32_t hot : {0u, 300u}) {
    for (int predict = 0; predict < 4; ++predict) {  // off, direct, gather, "uncorrected"
      How how{.name = "hot rows " + std::to_string(hot) + ", predict " + std::to_string(predict),
              .rows = {.in_place = false, .hot_rows = hot, .predict = predict > 0},
              .gather = predict == 2,
              .uncorrected = predict == 3};
      if (predict == 1) how.link = {.bytes_per_s = 200e6, .latency_s = 20e-6};
      ways.push_back(how);
    }
  }
  return ways;
}

struct Outcome {
  std::vector<std::vector<float>> logits;  // [steps * sequences]
  std::map<std::array<uint32_t, 4>, std::vector<uint32_t>> selections;
  std::vector<SequenceRecall> recall;
  std::vector<LayerCounts> layers;
  std::vector<RowCounts> counts;
};

class RecallTest : public testing::Test {
 protected:
  std::unique_ptr<LocalRunner> Make(const How& how, uint32_t sequences,
                                    std::optional<double> target) {
    auto runner = LocalRunner::Make(files_, {.max_tokens = kTokens,
                                             .sequences = sequences,
                                             .chunk_tokens = 256,
                                             .threads = 2,
                                             .rows = how.rows,
                                             .placement = how.placement,
                                             .selection = budget_.At(kTokens),
                                             .link = how.link,
                                             .gather = how.gather,
                                             .recall_target = target});
    EXPECT_TRUE(runner.ok()) << runner.status();
    std::vector<LayerPolicy> policies(kLayers, {how.rows.predict, 125, how.uncorrected});
    policies[0].predict = false;
    (*runner)->device().attention->set_policies(policies);
    return *std::move(runner);
  }

  Outcome Decode(LocalRunner& runner, uint32_t sequences) {
    Outcome outcome;
    const auto vocab = files_.config.vocab_size;
    std::vector<uint32_t> next(sequences);
    for (uint32_t s = 0; s < sequences; ++s) {
      std::mt19937 random(s + 1);
      std::vector<uint32_t> ids(kPrompt - 40 * s);
      for (uint32_t& id : ids) id = random() % vocab;
      const float* logits = runner.Prefill(s, ids);
      next[s] = static_cast<uint32_t>(std::max_element(logits, logits + vocab) - logits);
    }
    uint32_t step = 0;
    runner.device().attention->set_selection_hook([&](uint32_t layer, uint32_t item, uint32_t head,
                                                      bool predicted, std::span<uint32_t> list) {
      if (predicted) return;
      outcome.selections[{step, layer, item, head}] = {list.begin(), list.end()};
      if (seen_) seen_(runner, layer, head, list);
    });
    for (; step < kSteps; ++step) {
      std::vector<LocalRunner::Step> steps;
      for (uint32_t s = 0; s < sequences; ++s) steps.push_back({s, {&next[s], 1}, budget_});
      runner.ForwardBatch(steps);
      for (uint32_t s = 0; s < sequences; ++s) {
        const float* logits = runner.Logits(s);
        outcome.logits.emplace_back(logits, logits + vocab);
        next[s] = static_cast<uint32_t>(std::max_element(logits, logits + vocab) - logits);
      }
    }
    for (uint32_t s = 0; s < sequences; ++s) {
      if (runner.recall(s)) outcome.recall.push_back(*runner.recall(s));
      outcome.counts.push_back(runner.counts(s));
    }
    outcome.layers = runner.device().attention->counts();
    return outcome;
  }
  Outcome Run(const How& how, uint32_t sequences, std::optional<double> target) {
    return Decode(*Make(how, sequences, target), sequences);
  }

  static void ExpectSame(const Outcome& a, const Outcome& b, const std::string& what) {
    EXPECT_TRUE(a.selections == b.selections) << what;
    ASSERT_EQ(a.logits.size(), b.logits.size());
    for (size_t i = 0; i < a.logits.size(); ++i) {
      ASSERT_EQ(std::memcmp(a.logits[i].data(), b.logits[i].data(), a.logits[i].size() * 4), 0)
          << what << ": logits differ at " << i;
    }
    ASSERT_EQ(a.recall.size(), b.recall.size());
    for (size_t s = 0; s < a.recall.size(); ++s) {
      EXPECT_EQ(a.recall[s].sum(), b.recall[s].sum()) << what;
      EXPECT_EQ(a.recall[s].samples(), b.recall[s].samples()) << what;
      EXPECT_EQ(a.recall[s].whole_layers(), b.recall[s].whole_layers()) << what;
    }
  }

  RowBudget budget_{.denominator = 2};
  std::function<void(LocalRunner&, uint32_t layer, uint32_t head, std::span<uint32_t>)> seen_;
  RandomCheckpoint checkpoint_{{.layers = kLayers,
                                .kv_heads = 2,
                                .group = 3,
                                .head_dim = 32,
                                .hidden = 96,
                                .intermediate = 120,
                                .context = kTokens,
                                .channels = 4,
                                .dtype = DType::kBF16},
                               5};
  const ModelFiles& files_ = checkpoint_.files();
};

TEST_F(RecallTest, SamplesAreWhatTheSelectionsHold) {
  budget_ = {.rows = 90};
  const auto reference = MakeReferenceBackend();
  const ModelConfig& config = files_.config;
  std::map<std::pair<uint32_t, uint32_t>, double> held;  // position, layer
  seen_ = [&](LocalRunner& runner, uint32_t layer, uint32_t head, std::span<uint32_t> list) {
    const uint32_t tokens = runner.position() + 1;
    std::vector<float> mass(tokens);
    const size_t of_head = size_t{head} * config.group() * config.head_dim;
    reference->RowMass({.q = runner.model().scratch().q + of_head,
                        .rows = runner.HostRows(layer, 0),
                        .kv_head = head,
                        .tokens = tokens,
                        .group = config.group(),
                        .head_dim = config.head_dim,
                        .scale = config.attention_scale(),
                        .mass = mass.data()});
    for (uint32_t row : list) held[{tokens - 1, layer}] += mass[row] / config.kv_heads;
  };
  const Outcome outcome = Run({}, 1, 0.0);
  double sum = 0;
  uint64_t samples = 0;
  for (const auto& [at, share] : held) {
    if (!outcome.recall[0].Samples(at.second, at.first)) continue;
    sum += share;
    ++samples;
  }
  EXPECT_EQ(samples, 2u);  // of 24 steps
  EXPECT_EQ(outcome.recall[0].samples(), samples);
  EXPECT_NEAR(outcome.recall[0].sum(), sum, 1e-4);
  EXPECT_GT(sum / 2, 0.1);
  EXPECT_LT(sum / 2, 0.6);
  double counted = 0;
  for (const LayerCounts& layer : outcome.layers) counted += layer.recall_sum;
  EXPECT_EQ(counted, outcome.recall[0].sum());
}

TEST_F(RecallTest, SamplingChangesNothing) {
  budget_ = {.rows = 90};
  Outcome expected = Run({}, 2, std::nullopt);
  const Outcome sampled = Run({}, 2, 0.0);
  EXPECT_TRUE(expected.recall.empty());
  ASSERT_EQ(sampled.recall.size(), 2u);
  expected.recall = sampled.recall;
  ExpectSame(sampled, expected, "sampled");
}

TEST_F(RecallTest, AFullSelectionHoldsEverything) {
  budget_ = {.rows = kTokens};
  const Outcome outcome = Run({}, 1, 0.0);
  EXPECT_EQ(outcome.recall[0].sum(), static_cast<double>(outcome.recall[0].samples()));
  EXPECT_GT(outcome.recall[0].samples(), 0u);
}

TEST_F(RecallTest, TheSameBitsInEveryWay) {
  for (uint32_t sequences : {1u, 3u}) {
    const Outcome expected = Run({}, sequences, 0.4);
    std::set<size_t> sizes;
    for (const auto& [at, list] : expected.selections) sizes.insert(list.size());
    EXPECT_GT(sizes.size(), size_t{10}) << "selections differ in length";
    EXPECT_LE(*sizes.rbegin(), size_t{kTokens / 2});
    for (const How& how : AllWays()) {
      const Outcome outcome = Run(how, sequences, 0.4);
      ExpectSame(outcome, expected, how.name + ", batch of " + std::to_string(sequences));
      for (const LayerCounts& layer : outcome.layers) {
        EXPECT_EQ(layer.rows.selected, layer.rows.hits + layer.rows.useful + layer.rows.missed);
      }
    }
    // Alone and in company.
    const Outcome alone = Run({}, 1, 0.4);
    for (uint32_t step = 0; step < kSteps; ++step) {
      EXPECT_EQ(alone.logits[step], expected.logits[step * sequences]);
    }
  }
}

TEST_F(RecallTest, AHigherTargetTakesMoreAndHoldsMore) {
  budget_ = {.denominator = 1};
  uint64_t rows = 0;
  double held = 0;
  for (double target : {0.2, 0.4, 0.6}) {
    const Outcome outcome = Run({}, 1, target);
    // The first four steps take the budget, which is everything here, and sample every layer.
    constexpr double kFirst = 4 * kLayers;
    const double recall = (outcome.recall[0].sum() - kFirst) /
                          (static_cast<double>(outcome.recall[0].samples()) - kFirst);
    EXPECT_GT(outcome.counts[0].selected, rows);
    EXPECT_GT(recall, held);
    // More than asked for, since steps of random weights differ and four are little to go by.
    EXPECT_GE(recall, target);
    EXPECT_LT(recall, target + 0.25);
    EXPECT_EQ(outcome.recall[0].whole_layers(), 0u);
    rows = outcome.counts[0].selected;
    held = recall;
  }
}

// Every layer misses it twice and then attends everything, wherever rows are.
TEST_F(RecallTest, FallsBackToDenseInEveryWay) {
  budget_ = {.rows = 90};
  const Outcome expected = Run({}, 2, 0.9);
  uint32_t fell_back = 0;
  for (const LayerCounts& layer : expected.layers) fell_back += layer.fell_back;
  EXPECT_EQ(fell_back, 2 * kLayers);
  EXPECT_EQ(expected.recall[1].whole_layers(), kLayers);
  EXPECT_EQ(expected.recall[0].mean_rows(), kTokens);
  EXPECT_EQ(expected.selections.size(), size_t{2 * 2 * 2 * kLayers});  // of the first two steps
  for (const How& how : AllWays()) {
    const Outcome outcome = Run(how, 2, 0.9);
    ExpectSame(outcome, expected, how.name);
    for (const LayerCounts& layer : outcome.layers) {
      EXPECT_EQ(layer.rows.selected, layer.rows.hits + layer.rows.useful + layer.rows.missed);
    }
  }
}

}  // namespace
}  // namespace sparsekv
