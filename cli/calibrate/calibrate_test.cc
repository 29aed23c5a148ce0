#include "cli/calibrate/calibrate.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "cli/calibrate/calibration_report.h"
#include "cli/recall/recall.h"
#include "gpu_worker/random_checkpoint.h"
#include "kernels/half.h"

namespace sparsekv {
namespace {

namespace fs = std::filesystem;

// A directory that goes with the object.
struct Scratch {
  const std::string path =
      fs::temp_directory_path() / ("calibrate_test." + std::to_string(getpid()));
  Scratch() { fs::create_directories(path); }
  ~Scratch() { fs::remove_all(path); }
};

// Multiplies rows `channels` of every KV head of a float32 tensor [heads * head_dim, inputs].
void ScaleRows(const std::string& file, const std::string& tensor, uint32_t head_dim,
               const std::set<uint32_t>& channels, float factor) {
  std::ifstream in(file, std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(in)), {});
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), 8);
  const auto entry = nlohmann::json::parse(bytes.substr(8, header))[tensor];
  ASSERT_EQ(entry["dtype"], "F32");
  const size_t rows = entry["shape"][0], inputs = entry["shape"][1];
  char* data = bytes.data() + 8 + header + entry["data_offsets"][0].get<size_t>();
  for (size_t row = 0; row < rows; ++row) {
    if (!channels.contains(row % head_dim)) continue;
    for (size_t i = row * inputs; i < (row + 1) * inputs; ++i) {
      StoreValue(data, i, DType::kF32, LoadValue(data, i, DType::kF32) * factor);
    }
  }
  std::ofstream(file, std::ios::binary | std::ios::trunc) << bytes;
}

CalibrateOptions OnRecall(const std::string& dir) {
  CalibrateOptions o;
  o.model_dir = dir;
  o.text_file = dir + "/chase.txt";
  o.context = 3072;
  o.criterion = *ParseCriterion("qk-lift");
  o.queries = 16;
  o.channels = 4;
  o.label_format = LabelFormat::kBf16;
  o.threads = 2;
  return o;
}

TEST(Calibrate, FindsTheChannelsThatTheRecallCheckpointMadeHeavy) {
  Scratch scratch;
  RecallOptions options = {.out = scratch.path, .context = 8192, .hops = 8};
  options.model.kv_heads = 2;
  options.model.head_dim = 64;
  ASSERT_TRUE(MakeRecall(options).ok());
  const ChannelConfig built = RecallChannels(options.model);
  for (const char* criterion : {"qk", "qk-lift", "qk-mass"}) {
    CalibrateOptions o = OnRecall(scratch.path);
    o.criterion = *ParseCriterion(criterion);
    const auto found = Calibrate(o);
    ASSERT_TRUE(found.ok()) << found.status();
    ASSERT_EQ(built.channels, 4u);
    for (uint32_t head = 0; head < 2; ++head) {
      const uint16_t* a = built.Layer(1) + head * 4;
      const uint16_t* b = found->channels.Layer(1) + head * 4;
      EXPECT_EQ(std::set<uint16_t>(a, a + 4), std::set<uint16_t>(b, b + 4)) << criterion;
    }
  }
}

// Channels that are larger than the planted ones, but the same in every key, tell no key from
// another. What goes by size takes them, as published; what goes by attention does not, and holds
// all of it at the same bytes.
TEST(Calibrate, LoudChannelsThatSayNothingAreLeft) {
  Scratch scratch;
  RecallOptions options = {.out = scratch.path, .context = 8192, .hops = 8};
  options.model.kv_heads = 2;
  options.model.head_dim = 64;
  options.model.loud_channels = 4;
  ASSERT_TRUE(MakeRecall(options).ok());
  const ChannelConfig built = RecallChannels(options.model);
  for (const char* criterion : {"qk-lift", "published-qk", "qk"}) {
    CalibrateOptions o = OnRecall(scratch.path);
    o.criterion = *ParseCriterion(criterion);
    const auto found = Calibrate(o);
    ASSERT_TRUE(found.ok()) << found.status();
    for (uint32_t head = 0; head < 2; ++head) {
      const uint16_t* heavy = built.Layer(1) + head * 4;
      const auto loud = RecallLoudChannels(options.model, head);
      const bool by_attention = std::string_view(criterion) == "qk-lift";
      const std::set<uint16_t> wanted = by_attention ? std::set<uint16_t>(heavy, heavy + 4)
                                                     : std::set<uint16_t>(loud.begin(), loud.end());
      const uint16_t* chosen = found->channels.Layer(1) + head * 4;
      EXPECT_EQ(std::set<uint16_t>(chosen, chosen + 4), wanted) << criterion << " " << head;
    }
  }

  CalibrateOptions o = OnRecall(scratch.path);
  o.compare = true;
  const auto found = Calibrate(o);
  ASSERT_TRUE(found.ok()) << found.status();
  const auto report = nlohmann::json::parse(CalibrationJson(*found));
  std::map<std::string, double> mass;
  for (const auto& row : report["rows"]) {
    if (row["label_format"] != "bf16" || row["channels"] != 4) continue;
    mass[row["criterion"]] = row["recall"]["1/16"]["mass"];
  }
  const double best = report["bounds"]["1/16"]["true_top_k"];
  EXPECT_GT(mass["qk-lift"], best - 0.01);
  for (const char* published : {"published-q", "published-k", "published-qk"}) {
    EXPECT_LT(mass[published], mass["qk-lift"] - 0.1) << published;
  }
}

TEST(Calibrate, FindsPlantedChannelsAndReportsThem) {
  Scratch scratch;
  RecallOptions options = {.out = scratch.path, .context = 8192, .hops = 8};
  options.model.head_dim = 64;
  options.model.extra_layers = 1;
  ASSERT_TRUE(MakeRecall(options).ok());
  // The layer between is random; of it, some channels now carry the score.
  const std::set<uint32_t> planted = {5, 20, 37, 52};
  const std::string weights = scratch.path + "/model.safetensors";
  for (const char* x : {"q_proj", "k_proj"}) {
    ScaleRows(weights, std::string("model.layers.1.self_attn.") + x + ".weight", 64, planted, 40);
  }
  CalibrateOptions o = OnRecall(scratch.path);
  o.compare = true;
  const auto found = Calibrate(o);
  ASSERT_TRUE(found.ok()) << found.status();
  const uint16_t* channels = found->channels.Layer(1);
  EXPECT_EQ(std::set<uint32_t>(channels, channels + 4), planted);
  EXPECT_EQ(found->channels.recall.mass.size(), 3u);

  // Equal bytes: per KV head beats as published, and nothing beats the true top-k.
  const auto report = nlohmann::json::parse(CalibrationJson(*found));
  EXPECT_EQ(report["chosen"], "qk-lift");
  double own = 0, published = 0;
  for (const auto& row : report["rows"]) {
    for (const char* budget : {"1/16", "1/32"}) {
      const double mass = row["recall"][budget]["mass"];
      EXPECT_LE(mass, report["bounds"][budget]["true_top_k"].get<double>() + 1e-6);
      EXPECT_GE(mass, report["bounds"][budget]["always_set"].get<double>() - 1e-6);
    }
    if (row["label_format"] != "bf16" || row["channels"] != 4) continue;
    if (row["criterion"] == "qk-lift") own = row["recall"]["1/16"]["mass"];
    if (row["criterion"] == "published-qk") published = row["recall"]["1/16"]["mass"];
  }
  EXPECT_GE(own, published);
  const std::string table = CalibrationTable(*found);
  for (ChannelCriterion criterion : ComparedCriteria()) {
    EXPECT_NE(table.find("\n" + Name(criterion) + " "), std::string::npos) << Name(criterion);
  }

  // Well formed: every element is closed, in order.
  const std::string svg = CalibrationSvg(*found);
  std::vector<std::string> open;
  for (size_t at = svg.find('<'); at != std::string::npos; at = svg.find('<', at + 1)) {
    const size_t end = svg.find('>', at);
    ASSERT_NE(end, std::string::npos);
    const std::string name = svg.substr(at + 1, svg.find_first_of(" >/", at + 2) - at - 1);
    if (name[0] == '/') {
      ASSERT_FALSE(open.empty());
      ASSERT_EQ(svg.substr(at + 2, end - at - 2), open.back());
      open.pop_back();
    } else if (svg[end - 1] != '/') {
      open.push_back(name);
    }
  }
  EXPECT_TRUE(open.empty());
  EXPECT_EQ(svg.find("nan"), std::string::npos);

  ASSERT_TRUE(found->channels.Save(scratch.path + "/c.json", found->fingerprint).ok());
  const auto files = ModelFiles::Load(scratch.path, scratch.path + "/c.json");
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_EQ(files->channels->order, found->channels.order);
  EXPECT_EQ(files->channels->context, 3072u);
  EXPECT_EQ(files->channels->recall.queries, found->channels.recall.queries);
  EXPECT_NEAR(files->channels->recall.mass[2], found->channels.recall.mass[2], 1e-4);
}

TEST(Calibrate, RefusesWhatItCannotMeasure) {
  Scratch scratch;
  RecallOptions options = {.out = scratch.path, .context = 512, .hops = 8};
  options.model.head_dim = 64;
  ASSERT_TRUE(MakeRecall(options).ok());
  const auto error = [&](auto change) {
    CalibrateOptions o = OnRecall(scratch.path);
    change(o);
    const auto result = Calibrate(o);
    return result.ok() ? "" : std::string(result.status().message());
  };
  using O = CalibrateOptions;
  EXPECT_NE(error([](O& o) { o.context = 1 << 30; }).find("--context"), std::string::npos);
  EXPECT_NE(error([](O& o) { o.channels = 65; }).find("--label-channels"), std::string::npos);
  EXPECT_NE(error([](O& o) { o.max_tokens = 100; }).find("--held-out"), std::string::npos);
  EXPECT_EQ(error([](O& o) { o.max_tokens = 100, o.held_out = 0; }), "");
  EXPECT_NE(error([](O& o) { o.text_file = "/none"; }).find("/none"), std::string::npos);
}

// Where nothing is said of labels: codes of 2 bits, a quarter of the channels; a sixteenth of bf16.
TEST(Calibrate, LabelsAreAThirtySecondOfARow) {
  Scratch scratch;
  RecallOptions options = {.out = scratch.path, .context = 512, .hops = 8};
  options.model.head_dim = 64;
  ASSERT_TRUE(MakeRecall(options).ok());
  for (const bool coded : {true, false}) {
    CalibrateOptions o;
    if (!coded) o.label_format = LabelFormat::kBf16;
    o.model_dir = scratch.path;
    o.text_file = scratch.path + "/chase.txt";
    o.criterion = *ParseCriterion("qk-lift");
    o.max_tokens = 100;
    o.held_out = 0;
    o.threads = 2;
    const auto found = Calibrate(o);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(found->channels.label_format, coded ? LabelFormat::kInt2 : LabelFormat::kBf16);
    EXPECT_EQ(found->channels.channels, coded ? 16u : 4u);
    const size_t row = 2 * 64 * sizeof(uint16_t);
    EXPECT_EQ(found->channels.label_layout().head_stride() / kBlockTokens, row / 32);
  }
}

}  // namespace
}  // namespace sparsekv
