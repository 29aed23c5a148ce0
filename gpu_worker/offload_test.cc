// Promise P2 in one process: wherever rows are, however they come there and in whatever company,
// the logits of every step are those of rows attended where they lie, to the bit, and so are the
// selections. And P8: the device's memory is what the plan said.
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>

#include "gpu_worker/local_runner.h"
#include "gpu_worker/random_checkpoint.h"

namespace sparsekv {
namespace {

constexpr uint32_t kPrompt = 600, kSteps = 12, kTokens = kPrompt + kSteps;
constexpr RowBudget kBudget{.rows = 90};

struct How {
  std::string name;
  RowMode rows;
  RowPlacement placement = RowPlacement::kOffload;
  LinkSpec link;
  bool gather = false;
  uint32_t percent = 100;
};

std::vector<How> AllWays() {
  std::vector<How> ways = {{.name = "resident",
                            .rows = {.in_place = false, .predict = true},
                            .placement = RowPlacement::kResident}};
  for (uint32_t hot : {0u, 100u, 300u}) {
    for (int predict = 0; predict < 4; ++predict) {  // off, 60 %, 100 %, 180 %
      for (bool gather : {false, true}) {
        if (gather && predict == 0) continue;
        for (bool link : {false, true}) {
          const uint32_t percent[] = {0, 60, 100, 180};
          How how{.rows = {.in_place = false, .hot_rows = hot, .predict = predict > 0},
                  .gather = gather,
                  .percent = percent[predict]};
          if (link) how.link = {.bytes_per_s = 30e6, .latency_s = 50e-6};
          how.name = "hot rows " + std::to_string(hot) + ", predicting " +
                     std::to_string(how.percent) + " %" + (gather ? ", gather" : "") +
                     (link ? ", slow link" : "");
          ways.push_back(how);
        }
      }
    }
  }
  return ways;
}

std::vector<LayerPolicy> Policies(uint32_t layers, const How& how, bool uncorrected = false) {
  std::vector<LayerPolicy> policies(layers, {how.rows.predict, how.percent, uncorrected});
  policies[0].predict = false;
  return policies;
}

struct Outcome {
  std::vector<std::vector<float>> logits;                               // [steps * sequences]
  std::map<std::array<uint32_t, 4>, std::vector<uint32_t>> selections;  // step, layer, item, head
  std::vector<LayerCounts> layers;
};

class OffloadTest : public testing::Test {
 protected:
  explicit OffloadTest(bool gptq = false, LabelFormat labels = LabelFormat::kBf16)
      : gptq_(gptq), label_format_(labels) {}

  std::unique_ptr<LocalRunner> Make(const How& how, uint32_t sequences) {
    auto runner = LocalRunner::Make(files_, {.max_tokens = kTokens,
                                             .sequences = sequences,
                                             .chunk_tokens = 256,
                                             .threads = 2,
                                             .rows = how.rows,
                                             .placement = how.placement,
                                             .selection = kBudget.rows,
                                             .link = how.link,
                                             .gather = how.gather});
    EXPECT_TRUE(runner.ok()) << runner.status();
    return *std::move(runner);
  }

  std::vector<uint32_t> Prompt(uint32_t sequence) const {
    std::mt19937 random(sequence + 1);
    std::vector<uint32_t> ids(kPrompt);
    for (uint32_t& id : ids) id = random() % files_.config.vocab_size;
    return ids;
  }

  // Prompts, then greedy steps of all sequences together. Sequence `odd`, if there is one, is
  // dense.
  Outcome Decode(LocalRunner& runner, uint32_t sequences, uint32_t dense = kNoToken) {
    Outcome outcome;
    std::vector<uint32_t> next(sequences);
    auto argmax = [&](const float* logits) {
      return static_cast<uint32_t>(std::max_element(logits, logits + files_.config.vocab_size) -
                                   logits);
    };
    for (uint32_t s = 0; s < sequences; ++s) {
      if (runner.position(s) == 0) next[s] = argmax(runner.Prefill(s, Prompt(s)));
    }
    uint32_t step = 0;
    runner.device().attention->set_selection_hook([&](uint32_t layer, uint32_t item, uint32_t head,
                                                      bool predicted,
                                                      std::span<uint32_t> selection) {
      if (!predicted)
        outcome.selections[{step, layer, item, head}] = {selection.begin(), selection.end()};
    });
    for (; step < kSteps; ++step) {
      std::vector<LocalRunner::Step> steps;
      for (uint32_t s = 0; s < sequences; ++s) {
        steps.push_back({s, {&next[s], 1}, s == dense ? RowBudget{} : kBudget});
      }
      runner.model().set_measure(step % 4 == 0);
      runner.ForwardBatch(steps);
      for (uint32_t s = 0; s < sequences; ++s) {
        const float* logits = runner.Logits(s);
        outcome.logits.emplace_back(logits, logits + files_.config.vocab_size);
        next[s] = argmax(logits);
      }
    }
    outcome.layers = runner.device().attention->counts();
    return outcome;
  }

  static void ExpectSame(const Outcome& a, const Outcome& b, const std::string& what) {
    ASSERT_EQ(a.logits.size(), b.logits.size());
    EXPECT_TRUE(a.selections == b.selections) << what;
    for (size_t i = 0; i < a.logits.size(); ++i) {
      ASSERT_EQ(std::memcmp(a.logits[i].data(), b.logits[i].data(), a.logits[i].size() * 4), 0)
          << what << ": logits differ at " << i;
    }
  }

  // All ways against rows attended where they lie.
  void CheckEveryWay(uint32_t sequences);

  const bool gptq_;
  const LabelFormat label_format_;
  RandomCheckpoint checkpoint_{{.layers = 5,
                                .kv_heads = 2,
                                .group = 3,
                                .head_dim = 32,
                                .hidden = 96,
                                .intermediate = gptq_ ? 128u : 120u,
                                .context = kTokens,
                                .channels = label_format_ == LabelFormat::kBf16 ? 4u : 10u,
                                .label_format = label_format_,
                                .dtype = DType::kBF16,
                                .gptq = gptq_},
                               5};
  const ModelFiles& files_ = checkpoint_.files();
};

void OffloadTest::CheckEveryWay(uint32_t sequences) {
  const Outcome expected = Decode(*Make({}, sequences), sequences);
  ASSERT_EQ(expected.selections.size(), size_t{kSteps} * 5 * 2 * sequences);
  for (const How& how : AllWays()) {
    auto runner = Make(how, sequences);
    runner->device().attention->set_policies(Policies(5, how));
    const Outcome outcome = Decode(*runner, sequences);
    ExpectSame(outcome, expected, how.name + ", batch of " + std::to_string(sequences));
    for (const LayerCounts& layer : outcome.layers) {
      const RowCounts& rows = layer.rows;
      EXPECT_EQ(rows.selected, uint64_t{kSteps} * 2 * kBudget.rows * sequences) << how.name;
      EXPECT_EQ(rows.selected, rows.hits + rows.useful + rows.missed) << how.name;
      EXPECT_LE(rows.useful, rows.prefetched);
    }
    EXPECT_EQ(outcome.layers[0].rows.prefetched, 0u);
    if (how.rows.predict && how.placement == RowPlacement::kOffload) {
      EXPECT_GT(outcome.layers[3].rows.prefetched + outcome.layers[3].cut, 0u) << how.name;
    }
    EXPECT_GT(outcome.layers[3].similarity_sum / outcome.layers[3].similarity_count, 0.1);
  }
}

TEST_F(OffloadTest, EveryWayGivesTheSameBitsAloneAndInABatch) {
  for (uint32_t sequences : {1u, 4u}) CheckEveryWay(sequences);
}

// Matrices of 4-bit codes.
class OffloadCodesTest : public OffloadTest {
 protected:
  OffloadCodesTest() : OffloadTest(/*gptq=*/true) {}
};

TEST_F(OffloadCodesTest, EveryWayGivesTheSameBitsAloneAndInABatch) {
  for (uint32_t sequences : {1u, 3u}) CheckEveryWay(sequences);
}

// Labels of 4-bit codes, by which the next layer's rows are predicted too.
class OffloadCodedLabelsTest : public OffloadTest {
 protected:
  OffloadCodedLabelsTest() : OffloadTest(/*gptq=*/false, LabelFormat::kInt4) {}
};

TEST_F(OffloadCodedLabelsTest, EveryWayGivesTheSameBitsAloneAndInABatch) {
  for (uint32_t sequences : {1u, 3u}) CheckEveryWay(sequences);
}

// A batch member that attends everything, streamed through the device one layer at a time.
TEST_F(OffloadTest, DenseSequencesAreStreamed) {
  const Outcome expected = Decode(*Make({}, 3), 3, /*dense=*/1);
  for (RowPlacement placement : {RowPlacement::kResident, RowPlacement::kOffload}) {
    const How how{.rows = {.in_place = false, .hot_rows = 100, .predict = true},
                  .placement = placement};
    auto runner = LocalRunner::Make(files_, {.max_tokens = kTokens,
                                             .sequences = 3,
                                             .chunk_tokens = 256,
                                             .rows = how.rows,
                                             .placement = placement,
                                             .selection = kTokens});
    ASSERT_TRUE(runner.ok()) << runner.status();
    (*runner)->device().attention->set_policies(Policies(5, how));
    ExpectSame(Decode(**runner, 3, 1), expected, "dense in a batch");
  }
}

// Nothing is left to correct when every row was predicted; what is attended is the prediction.
TEST_F(OffloadTest, WithoutCorrectionThePredictionIsAttended) {
  const How how{.rows = {.in_place = false, .hot_rows = 100, .predict = true},
                .link = {.bytes_per_s = 30e6, .latency_s = 50e-6}};
  auto runner = Make(how, 2);
  runner->device().attention->set_policies(Policies(5, how, /*uncorrected=*/true));
  const Outcome outcome = Decode(*runner, 2);
  const Outcome truth = Decode(*Make({}, 2), 2);
  EXPECT_FALSE(outcome.logits == truth.logits);
  for (size_t layer = 1; layer < 5; ++layer) {
    const LayerCounts& counts = outcome.layers[layer];
    EXPECT_EQ(counts.rows.missed, 0u);
    EXPECT_EQ(counts.cut, 0u);
    EXPECT_EQ(counts.rows.selected, uint64_t{kSteps} * 2 * kBudget.rows * 2);
    EXPECT_GT(counts.predicted_selected, 0u);
    EXPECT_LT(counts.predicted_selected, counts.predicted);
  }
}

// P7, and P3 on the device: what a sequence held comes back, and nothing of it shows in the next
// one that takes the memory; what does not fit takes nothing.
TEST_F(OffloadTest, MemoryComesBackClean) {
  auto device = Device::Make(files_, {.device_bytes = size_t{24} << 20,
                                      .max_batch = 2,
                                      .prefill_unit_tokens = 256,
                                      .threads = 1,
                                      .row_layout = files_.Layout(1),
                                      .rows = {false, 100, true}});
  ASSERT_TRUE(device.ok()) << device.status();
  DeviceRows& rows = *device->rows;
  const uint32_t blocks = rows.free_blocks(), maps = rows.maps().free_pages();
  for (int round = 0; round < 2; ++round) {
    RowSets sets[2], third;
    TableSpace tables = device->tables->Take();
    for (RowSets& one : sets) {
      ASSERT_TRUE(rows.Take(RowPlacement::kOffload, kTokens, 90, &tables, &one));
      EXPECT_EQ(one.drift->steps, 0u);
      EXPECT_EQ(one.drift->values[7], 0.0f);
      for (uint32_t layer = 0; layer < 5; ++layer) {
        const SlotTable table = one.Slots(layer);
        for (uint32_t token = 0; token < kTokens; ++token) {
          ASSERT_EQ(table.SlotOf(1, token), kNotHot);
          table.SlotOf(1, token) = 3;
        }
        for (uint32_t slot = 0; slot < table.slots; ++slot) {
          ASSERT_EQ(table.Meta(1, slot).token, kNoToken);
          table.Meta(1, slot) = {.token = 9, .last_use = 9};
        }
      }
      one.drift->steps = 5;
      one.drift->values[7] = 1;
    }
    const uint32_t left = rows.free_blocks(), maps_left = rows.maps().free_pages();
    EXPECT_FALSE(rows.Take(RowPlacement::kResident, 64 * blocks, 0, &tables, &third));
    EXPECT_EQ(rows.free_blocks(), left);
    EXPECT_EQ(rows.maps().free_pages(), maps_left);
    for (RowSets& one : sets) rows.Return(&one);
    EXPECT_EQ(rows.free_blocks(), blocks);
    EXPECT_EQ(rows.maps().free_pages(), maps);
  }
}

TEST_F(OffloadTest, TheArenaHoldsWhatThePlanSaid) {
  for (bool in_place : {true, false}) {
    for (uint32_t hot : {0u, 100u, 200u}) {
      for (bool predict : {false, true}) {
        auto device = Device::Make(files_, {.device_bytes = size_t{24} << 20,
                                            .max_batch = 8,
                                            .prefill_unit_tokens = 256,
                                            .threads = 1,
                                            .row_layout = files_.Layout(1),
                                            .rows = {in_place, hot, predict}});
        ASSERT_TRUE(device.ok()) << device.status();
        EXPECT_EQ(device->plan.bytes_by_kind, device->arena->bytes_by_kind());
        EXPECT_EQ(device->plan.total_bytes(), device->arena->used_bytes());
        EXPECT_EQ(device->plan.row_blocks > 0, !in_place);
      }
    }
  }
}

// P8 at real sizes, which need no memory to be planned: labels, hot rows and maps of one sequence,
// and where one layer's rows land on a device of its own.
TEST(MemoryPlanTest, LabelsHotRowsAndMapsAreASixteenthOfTheDenseCache) {
  for (const auto& [kv_heads, head_dim, layers] :
       {std::array<uint32_t, 3>{8, 64, 16}, {8, 128, 32}, {32, 128, 32}}) {
    for (uint32_t context : {32768u, 131072u}) {
      const uint32_t pages = context / kBlockTokens, channels = head_dim / 16;
      const RowLayout layout{.layers = 1,
                             .kv_heads = kv_heads,
                             .head_dim = head_dim,
                             .dtype = DType::kBF16,
                             .blocks = 1};
      const DeviceRows::Need need =
          DeviceRows::NeedOf(layers, 2048, RowPlacement::kOffload, context, 2048);
      const LabelLayout bf16{layers, kv_heads, channels};
      // Of codes of 4 bits two or three times as many channels fit into the same bytes.
      const LabelLayout int4{layers, kv_heads, head_dim == 64 ? 8u : 24u, LabelFormat::kInt4};
      EXPECT_LE(int4.page_bytes(), bf16.page_bytes());
      const size_t labels = pages * bf16.page_bytes();
      const size_t maps = pages * MapLayout{layers, kv_heads}.page_bytes() +
                          need.blocks() * DeviceRows::MetaBytes(layout);
      const size_t rows = need.blocks() * layout.block_stride();
      const size_t dense = size_t{context} * layers * kv_heads * layout.row_bytes();
      if (context < 131072) continue;
      const size_t landing = rows / layers;
      EXPECT_LE(16 * (labels + maps + rows + landing), dense);
    }
  }
}

}  // namespace
}  // namespace sparsekv
