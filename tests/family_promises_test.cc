// P1 and P2 for every family: a budget of the window or the context gives dense attention's bits,
// and the logits and selections of a sequence are the same whatever its company, the chunks of its
// prompt, where its rows are and how they come there. Windows are wider here than in the goldens,
// so that selections inside them leave something out.
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <numeric>
#include <random>

#include "family_checkpoint.h"
#include "gpu_worker/local_runner.h"

namespace sparsekv {
namespace {

using nlohmann::json;
using testing::FamilyCheckpoint;

constexpr uint32_t kPrompt = 280, kSteps = 6, kTokens = kPrompt + kSteps, kWindow = 150;
constexpr RowBudget kBudget{.rows = 90};

json Longer(const std::string& family) {
  json changes = {{"max_position_embeddings", kTokens}};
  if (family == "mistral" || family == "phi3" || family == "qwen2-windows") {
    changes["sliding_window"] = kWindow;
  }
  if (family == "phi3-short") changes["original_max_position_embeddings"] = kTokens;
  return changes;
}

struct How {
  std::string name;
  RowMode rows;
  RowPlacement placement = RowPlacement::kOffload;
  bool gather = false;
  uint32_t percent = 100;
};

std::vector<How> Ways() {
  return {{.name = "resident",
           .rows = {.in_place = false, .predict = true},
           .placement = RowPlacement::kResident},
          {.name = "double buffer", .rows = {.in_place = false}},
          {.name = "predicted", .rows = {.in_place = false, .predict = true}},
          {.name = "hot rows", .rows = {.in_place = false, .hot_rows = 120}},
          {.name = "hot rows, predicted",
           .rows = {.in_place = false, .hot_rows = 120, .predict = true},
           .percent = 60},
          {.name = "hot rows, predicted, gathered",
           .rows = {.in_place = false, .hot_rows = 200, .predict = true},
           .gather = true,
           .percent = 180}};
}

struct Outcome {
  std::vector<std::vector<float>> logits;                               // [steps * sequences]
  std::map<std::array<uint32_t, 4>, std::vector<uint32_t>> selections;  // step, layer, item, head
};

void ExpectSame(const Outcome& a, const Outcome& b, const std::string& what) {
  EXPECT_TRUE(a.selections == b.selections) << what;
  ASSERT_EQ(a.logits.size(), b.logits.size());
  for (size_t i = 0; i < a.logits.size(); ++i) {
    ASSERT_EQ(std::memcmp(a.logits[i].data(), b.logits[i].data(), a.logits[i].size() * 4), 0)
        << what << ": logits differ at " << i;
  }
}

class FamilyPromisesTest : public ::testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<LocalRunner> Make(const How& how, uint32_t sequences, uint32_t chunk = 256) {
    auto runner = LocalRunner::Make(files_, {.max_tokens = kTokens,
                                             .sequences = sequences,
                                             .chunk_tokens = chunk,
                                             .threads = 2,
                                             .rows = how.rows,
                                             .placement = how.placement,
                                             .selection = kBudget.rows,
                                             .gather = how.gather});
    EXPECT_TRUE(runner.ok()) << runner.status();
    std::vector<LayerPolicy> policies(files_.config.layers, {how.rows.predict, how.percent, false});
    policies[0].predict = false;
    (*runner)->device().attention->set_policies(policies);
    return *std::move(runner);
  }

  std::vector<uint32_t> Ids(uint32_t sequence) const {
    std::mt19937 random(sequence + 1);
    std::vector<uint32_t> ids(kTokens);
    for (uint32_t& id : ids) id = random() % files_.config.vocab_size;
    return ids;
  }

  // The sequences' prompts, then steps of all of them together over given tokens.
  Outcome Decode(LocalRunner& runner, std::vector<uint32_t> sequences, RowBudget budget = kBudget) {
    Outcome outcome;
    for (uint32_t i = 0; i < sequences.size(); ++i) {
      const std::vector<uint32_t> ids = Ids(sequences[i]);
      runner.Prefill(i, std::span(ids).first(kPrompt));
    }
    uint32_t step = 0;
    runner.device().attention->set_selection_hook([&](uint32_t layer, uint32_t item, uint32_t head,
                                                      bool predicted, std::span<uint32_t> list) {
      const uint32_t first = FirstInWindow(kPrompt + step, files_.config.window(layer));
      EXPECT_GE(list.front(), first) << "a row outside of the window";
      if (predicted) return;
      EXPECT_EQ(list.size(), budget.At(kPrompt + step + 1, first));
      outcome.selections[{step, layer, sequences[item], head}] = {list.begin(), list.end()};
    });
    for (; step < kSteps; ++step) {
      std::vector<std::vector<uint32_t>> ids;
      for (uint32_t sequence : sequences) ids.push_back({Ids(sequence)[kPrompt + step]});
      std::vector<LocalRunner::Step> steps;
      for (uint32_t i = 0; i < sequences.size(); ++i) steps.push_back({i, ids[i], budget});
      runner.model().set_measure(step % 3 == 0);
      runner.ForwardBatch(steps);
      for (uint32_t i = 0; i < sequences.size(); ++i) {
        const float* logits = runner.Logits(i);
        outcome.logits.emplace_back(logits, logits + files_.config.vocab_size);
      }
    }
    return outcome;
  }

  FamilyCheckpoint checkpoint_{GetParam(), DType::kBF16, Longer(GetParam())};
  const ModelFiles files_ = checkpoint_.Load(4);
};

TEST_P(FamilyPromisesTest, BudgetOfTheWindowOrTheContextIsDense) {
  const Outcome dense = Decode(*Make({}, 1), {0}, RowBudget{});
  bool all_slide = !files_.config.windows.empty();
  for (uint32_t window : files_.config.windows) all_slide = all_slide && window > 0;
  const uint32_t enough = all_slide ? kWindow : kTokens;
  for (RowBudget budget : {RowBudget{.rows = enough}, RowBudget{.denominator = 1}}) {
    Outcome selected = Decode(*Make({}, 1), {0}, budget);
    selected.selections.clear();
    ExpectSame(selected, dense, "a full budget");
  }
  Outcome less = Decode(*Make({}, 1), {0});
  EXPECT_NE(less.logits, dense.logits) << "the test selects nothing";
}

TEST_P(FamilyPromisesTest, ChunksAndCompanyDoNotMatter) {
  std::vector<Outcome> alone;
  for (uint32_t s = 0; s < 3; ++s) alone.push_back(Decode(*Make({}, 1), {s}));
  for (uint32_t chunk : {64u, 37u, 1u}) {
    ExpectSame(Decode(*Make({}, 1, chunk), {1}), alone[1], "chunks");
  }
  const Outcome together = Decode(*Make({}, 3), {0, 1, 2});
  for (uint32_t s = 0; s < 3; ++s) {
    Outcome mine;
    for (uint32_t step = 0; step < kSteps; ++step) {
      mine.logits.push_back(together.logits[step * 3 + s]);
    }
    for (const auto& [key, list] : together.selections) {
      if (key[2] == s) mine.selections[key] = list;
    }
    ExpectSame(mine, alone[s], "a batch");
  }
}

TEST_P(FamilyPromisesTest, EveryWayGivesTheSameBits) {
  const Outcome expected = Decode(*Make({}, 2), {0, 1});
  for (const How& how : Ways()) ExpectSame(Decode(*Make(how, 2), {0, 1}), expected, how.name);
  // Dense, streamed one layer at a time, or what the window leaves of it.
  const Outcome dense = Decode(*Make({}, 1), {0}, RowBudget{});
  for (RowPlacement placement : {RowPlacement::kResident, RowPlacement::kOffload}) {
    const How how{.rows = {.in_place = false}, .placement = placement};
    auto runner = LocalRunner::Make(
        files_,
        {.max_tokens = kTokens, .chunk_tokens = 256, .rows = how.rows, .placement = placement});
    ASSERT_TRUE(runner.ok()) << runner.status();
    ExpectSame(Decode(**runner, {0}, RowBudget{}), dense, "dense");
  }
}

// From a layer's own input the predictor gives the layer's own queries, on the label channels.
TEST_P(FamilyPromisesTest, PredictedQueriesAreTheLayersOwn) {
  auto runner = Make({.rows = {.in_place = false, .predict = true}}, 2);
  const ModelConfig& c = files_.config;
  Backend& backend = *runner->device().backend;
  const Scratch::Ahead& ahead = runner->model().scratch().ahead;
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> input(2 * c.hidden_size), normed(input.size());
  for (float& value : input) value = normal(random);
  for (uint32_t layer = 0; layer < c.layers; ++layer) {
    const LayerWeights& w = files_.weights->layers[layer];
    std::vector<float> q(size_t{2} * c.heads * c.head_dim);
    const ProjectArgs::Output output = {w.wq, q.data()};
    backend.Project({.x = input.data(),
                     .tokens = 2,
                     .norm = w.attention_norm,
                     .epsilon = c.rms_norm_eps,
                     .normed = normed.data(),
                     .outputs = {&output, 1}});
    if (w.bq.data) backend.AddBias({.x = q.data(), .tokens = 2, .bias = w.bq});
    if (w.q_norm.data) {
      backend.RmsNorm({.x = q.data(),
                       .tokens = 2 * c.heads,
                       .weight = w.q_norm,
                       .epsilon = c.rms_norm_eps,
                       .out = q.data()});
    }
    std::ranges::copy(input, ahead.normed);
    runner->device().predictor->Project(layer, 2, ahead);
    const ChannelConfig& channels = *files_.channels;
    for (uint32_t head = 0; head < 2 * c.heads; ++head) {
      const uint32_t kv_head = head % c.heads / c.group();
      for (uint32_t i = 0; i < channels.channels; ++i) {
        const size_t at =
            size_t{head} * c.head_dim + channels.Layer(layer)[kv_head * channels.channels + i];
        ASSERT_EQ(ahead.q[at], q[at]) << "layer " << layer << ", head " << head;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, FamilyPromisesTest,
                         ::testing::ValuesIn(testing::GoldenFamilies()), [](const auto& test) {
                           std::string name = test.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

// Sequences that rotate by the short factors and by the long ones, in one batch.
TEST(LongRopeTest, ShortAndLongSequencesShareABatch) {
  const FamilyCheckpoint checkpoint("phi3-long", DType::kBF16);
  const ModelFiles files = checkpoint.Load(4);
  const uint32_t original = files.config.rope_scaling.original_context;
  ASSERT_EQ(original, 64u);
  EXPECT_FALSE(files.config.long_rope(original));
  EXPECT_TRUE(files.config.long_rope(original + 1));
  constexpr uint32_t kSequences = 4, kLength = 60;
  std::vector<std::byte> pool(files.Layout(8).pool_bytes());
  auto device = Device::Make(files, {.device_bytes = size_t{1} << 28,
                                     .max_batch = kSequences,
                                     .prefill_unit_tokens = 256,
                                     .threads = 2,
                                     .row_layout = files.Layout(8),
                                     .row_pool = pool.data()});
  ASSERT_TRUE(device.ok()) << device.status();
  std::vector<uint32_t> ids(kLength);
  std::iota(ids.begin(), ids.end(), 3u);
  const uint32_t blocks[kSequences] = {5, 2, 7, 0};
  const bool longs[kSequences] = {false, true, true, false};
  std::vector<StepItem> items;
  for (uint32_t i = 0; i < kSequences; ++i) {
    items.push_back({.ids = ids, .blocks = &blocks[i], .long_rope = longs[i]});
  }
  device->model->BeginStep(StepKind::kPrompt);
  device->model->Forward(items);
  device->model->EndStep();
  const std::vector<float> short_logits(device->model->Logits(kLength - 1, 1),
                                        device->model->Logits(kLength - 1, 1) + 8);
  const float* long_logits = device->model->Logits(2 * kLength - 1, 1);
  EXPECT_NE(short_logits, std::vector<float>(long_logits, long_logits + 8));
  for (uint32_t i = 0; i < kSequences; ++i) {
    auto alone = LocalRunner::Make(files, {.max_tokens = longs[i] ? original + 1 : original});
    ASSERT_TRUE(alone.ok()) << alone.status();
    (*alone)->Forward(ids, RowBudget{});
    const size_t bytes = files.config.vocab_size * sizeof(float);
    EXPECT_EQ(std::memcmp(device->model->Logits((i + 1) * kLength - 1, 1),
                          (*alone)->Logits(kLength - 1), bytes),
              0)
        << i;
  }
}

}  // namespace
}  // namespace sparsekv
