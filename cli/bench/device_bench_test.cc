#include "cli/bench/device_bench.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "cli/bench/device_cases.h"
#include "kernels/fake_device.h"

namespace sparsekv {
namespace {

TEST(MeasureRuns, LeavesOutWhatAStepTakesByItself) {
  uint32_t most = 0;
  const auto step = [&](uint32_t runs) {
    most = std::max(most, runs);
    return 200e-6 + runs * 10e-6;
  };
  const TimePerRun time = MeasureRuns(step, 1000, {.least_step = 0.003, .rounds = 5});
  EXPECT_NEAR(time.seconds, 10e-6, 1e-9);
  EXPECT_GE(step(time.runs), 0.003);
  EXPECT_LE(time.runs, 1000u);
  EXPECT_EQ(most, 2 * time.runs);
}

TEST(MeasureRuns, KeepsToTheMostRunsAndIsOneRunWhereThatIsLong) {
  const auto fast = [](uint32_t runs) { return runs * 1e-7; };
  EXPECT_EQ(MeasureRuns(fast, 37, {}).runs, 37u);
  uint32_t steps = 0;
  const auto slow = [&](uint32_t runs) {
    ++steps;
    return 0.1 * runs;
  };
  EXPECT_EQ(MeasureRuns(slow, 1000, {.rounds = 100}).runs, 1u);
  EXPECT_LT(steps, 20u);  // rounds end early
}

TEST(MeasureRuns, NoiseMakesNoTimeNegative) {
  uint32_t call = 0;
  const auto step = [&](uint32_t) { return ++call % 2 == 0 ? 0.004 : 0.005; };
  EXPECT_GT(MeasureRuns(step, 1000, {}).seconds, 0);
}

// Everything in small: two models, one grouped and one not.
DeviceGrid SmallGrid() {
  DeviceGrid grid = {.models = {{.name = "grouped",
                                 .hidden = 128,
                                 .heads = 4,
                                 .kv_heads = 2,
                                 .head_dim = 32,
                                 .intermediate = 192,
                                 .vocab = 500},
                                {.name = "alone",
                                 .hidden = 64,
                                 .heads = 2,
                                 .kv_heads = 2,
                                 .head_dim = 32,
                                 .intermediate = 96,
                                 .vocab = 300}},
                     .batches = {1, 3},
                     .attention_batches = {2},
                     .contexts = {1280, 1u << 20},  // the second does not fit
                     .budget = 128,
                     .labels = {.channels = 8},
                     .prompt_tokens = 64,
                     .prompt_positions = {0, 256},
                     .hot_batches = {2},
                     .hot_slots = {128, 256},
                     .hot_context = 2048};
  grid.bench = {.pool_bytes = size_t{8} << 20,
                .cold_bytes = size_t{256} << 10,
                .copy_bytes = size_t{1} << 20,
                .product = 64,
                .timing = {.least_step = 50e-6, .rounds = 3}};
  return grid;
}

nlohmann::json ReportOf(Backend& backend, const DeviceGrid& grid) {
  const auto report = BenchDevice(backend, grid);
  EXPECT_TRUE(report.ok()) << report.status();
  return nlohmann::json::parse(report.ok() ? report->Text(/*json=*/true) : "{}");
}

TEST(DeviceBench, EveryCaseRunsOnTheCpu) {
  const auto backend = MakeCpuBackend(1);
  const auto json = ReportOf(*backend, SmallGrid());
  EXPECT_NE(json.at("machine").get<std::string>().find(backend->name()), std::string::npos);
  std::map<std::string, uint32_t> counts;
  for (const auto& item : json.at("cases")) {
    const std::string name = item.at("name");
    SCOPED_TRACE(item.dump());
    ++counts[name];
    ASSERT_TRUE(item.at("seconds_median").is_number());  // NaN would be null
    EXPECT_GT(item["seconds_median"].get<double>(), 0);
    EXPECT_GT(item.at("bytes").get<double>(), 0);
    EXPECT_GE(item.at("params").at("runs").get<uint32_t>(), 1u);
    const bool limited = name.starts_with("linear") || name.starts_with("attend") ||
                         name.starts_with("score") || name.starts_with("ceiling");
    EXPECT_EQ(limited, item.at("ceiling_share").is_number());
    if (name.starts_with("resolve")) {
      EXPECT_NEAR(item["params"].at("hit_rate").get<double>(), 0.8, 0.01);
    }
    EXPECT_TRUE(DeviceCaseExists(name));
  }
  const std::map<std::string, uint32_t> expected = {
      {"ceiling_copy", 1},      {"ceiling_product", 1},      {"linear_decode", 2 * 2 * 6},
      {"linear_prompt", 2 * 6}, {"attend_dense", 2},         {"score_labels", 2},
      {"select", 2 * 2},        {"attend_selection", 2 * 2}, {"score_select", 4},
      {"attend_sparse", 4},     {"attend_prompt", 2 * 2},    {"resolve", 2 * 2},
      {"resolve_copy", 2 * 2},  {"resolve_attend", 2 * 2},   {"rotate_append", 4},
      {"rms_norm", 4},          {"sample", 2 * 2 * 2}};
  EXPECT_EQ(counts, expected);
}

// Labels of every format, scored and appended to; bytes are what such labels take.
TEST(DeviceBench, LabelsOfEveryFormat) {
  for (const LabelFormat format : kLabelFormats) {
    SCOPED_TRACE(Name(format));
    FakeDevice backend(MakeCpuBackend(1), {});
    DeviceGrid grid = SmallGrid();
    grid.models.resize(1);
    grid.contexts.resize(1);
    grid.attention_batches = {2};
    grid.batches = {3};
    grid.labels = {.format = format, .channels = 10};
    grid.bench.timing = {.least_step = 0, .rounds = 1};
    // 10 channels: 20 bytes; or words of 4 bytes for the codes and one for the scales.
    const std::map<LabelFormat, double> bytes = {{LabelFormat::kBf16, 20},
                                                 {LabelFormat::kInt8, 4 + 12},
                                                 {LabelFormat::kInt4, 4 + 8},
                                                 {LabelFormat::kInt2, 4 + 4}};
    const double labels = 2.0 * 2 * 1280 * bytes.at(format);  // batch, KV heads, tokens
    const double row = 2.0 * 32 * 2;                          // K and V
    std::map<std::string, double> found;
    const auto json = ReportOf(backend, grid);
    for (const auto& item : json.at("cases")) {
      const auto& params = item.at("params");
      const std::string name = item.at("name");
      const bool coded = format != LabelFormat::kBf16;
      EXPECT_EQ(params.contains("label_format"), params.contains("label_channels") && coded);
      if (!params.contains("label_channels")) continue;
      EXPECT_EQ(params["label_channels"], 10);
      if (coded) {
        EXPECT_EQ(params["label_format"], Name(format));
      }
      if (params.value("budget", 128) == 128) found[name] = item.at("bytes");
    }
    const double selected = 2.0 * 2 * 128 * row;
    const double appended = 3 * (4 * (2 * 128 + 3 * 64) + 2 * (bytes.at(format) + row));
    EXPECT_EQ(found, (std::map<std::string, double>{{"score_labels", labels},
                                                    {"select", 2.0 * 2 * 1280 * 4},
                                                    {"attend_selection", selected},
                                                    {"score_select", labels},
                                                    {"attend_sparse", labels + selected},
                                                    {"rotate_append", appended}}));
  }
}

// What no CPU would notice, and a device would end the process for.
TEST(DeviceBench, GivesADeviceNothingButItsOwnMemory) {
  FakeDevice backend(MakeCpuBackend(1), {});
  DeviceGrid grid = SmallGrid();
  grid.bench.timing = {.least_step = 0, .rounds = 1};
  const auto json = ReportOf(backend, grid);
  std::set<std::string> names;
  for (const auto& item : json.at("cases")) names.insert(item.at("name"));
  EXPECT_EQ(names.size(), 17u);
}

// The same by places far into a step.
TEST(DeviceBench, LaterRunsOfAStepKeepToTheMemoryToo) {
  FakeDevice backend(MakeCpuBackend(1), {});
  DeviceGrid grid = SmallGrid();
  grid.contexts.resize(1);
  grid.models.resize(1);
  grid.batches = grid.hot_batches = {1};
  grid.bench.pool_bytes = size_t{2} << 20;
  grid.bench.timing = {.least_step = 100, .rounds = 1};  // as many runs as may be
  for (const char* filter : {"linear_decode", "resolve", "rotate_append", "attend_sel"}) {
    grid.bench.filter = filter;
    EXPECT_GT(ReportOf(backend, grid).at("cases").size(), 2u);
  }
}

TEST(DeviceBench, TheReferenceTakesTheSameArguments) {
  const auto backend = MakeReferenceBackend();
  DeviceGrid grid = SmallGrid();
  grid.models.resize(1);
  grid.bench.filter = "attend_s";
  grid.bench.timing = {.least_step = 0, .rounds = 1};
  const auto json = ReportOf(*backend, grid);
  std::set<std::string> names;
  for (const auto& item : json.at("cases")) names.insert(item.at("name"));
  EXPECT_EQ(names, (std::set<std::string>{"ceiling_copy", "ceiling_product", "attend_selection",
                                          "attend_sparse"}));
}

TEST(DeviceBench, TheUsualGridIsPartOfTheFullOne) {
  const DeviceGrid usual = DeviceGrid::Usual(), full = DeviceGrid::Full();
  for (uint32_t context : usual.contexts) {
    EXPECT_EQ(context % 64, 0u);
    EXPECT_NE(std::find(full.contexts.begin(), full.contexts.end(), context), full.contexts.end());
  }
  for (uint32_t batch : usual.attention_batches) {
    EXPECT_NE(std::find(full.attention_batches.begin(), full.attention_batches.end(), batch),
              full.attention_batches.end());
  }
}

}  // namespace
}  // namespace sparsekv
