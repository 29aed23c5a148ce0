#include "gpu_worker/channel_config.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <numeric>
#include <string>

#include "gpu_worker/checkpoint/checkpoint_testing.h"

namespace sparsekv {
namespace {

using nlohmann::json;
using testing::TempDir;
using testing::WriteFile;

constexpr uint64_t kFingerprint = 0x0123456789abcdefull;

ModelConfig Model(uint32_t layers, uint32_t heads, uint32_t kv_heads, uint32_t head_dim) {
  ModelConfig model;
  model.layers = layers;
  model.heads = heads;
  model.kv_heads = kv_heads;
  model.head_dim = head_dim;
  return model;
}

// Two layers of two KV heads of 8; order (layer, head) is 0..7 rotated by 2 * layer + head.
ChannelConfig Small() {
  ChannelConfig config;
  config.layers = 2;
  config.kv_heads = 2;
  config.head_dim = 8;
  config.criterion = "qk";
  config.text = {.xxh3 = 77, .tokens = 4096};
  for (uint16_t head = 0; head < 4; ++head) {
    for (uint16_t i = 0; i < 8; ++i) config.order.push_back((i + head) % 8);
  }
  config.UseChannels(3);
  return config;
}

std::string LoadError(const std::string& text, const ModelConfig& model,
                      std::string_view criterion = "", uint32_t channels = 0) {
  TempDir dir;
  WriteFile(dir.File("c.json"), text);
  const auto config =
      ChannelConfig::Load(dir.File("c.json"), model, kFingerprint, channels, criterion);
  if (config.ok()) return "";
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  const std::string message(config.status().message());
  EXPECT_EQ(message.find('\n'), std::string::npos);
  const size_t file = message.find("c.json");
  return file == std::string::npos ? message : message.substr(file);
}

// The saved small config with some fields changed.
std::string SavedWith(const json& changes) {
  TempDir dir;
  EXPECT_TRUE(Small().Save(dir.File("c.json"), kFingerprint).ok());
  std::ifstream in(dir.File("c.json"));
  json object = json::parse(in);
  object.merge_patch(changes);
  return object.dump();
}

TEST(ChannelConfig, ComesBackAsItWasSaved) {
  TempDir dir;
  const ChannelConfig saved = Small();
  ASSERT_TRUE(saved.Save(dir.File("c.json"), kFingerprint).ok());
  const auto config = ChannelConfig::Load(dir.File("c.json"), Model(2, 4, 2, 8), kFingerprint);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->layers, 2u);
  EXPECT_EQ(config->kv_heads, 2u);
  EXPECT_EQ(config->head_dim, 8u);
  EXPECT_EQ(config->channels, 3u);
  EXPECT_EQ(config->criterion, "qk");
  EXPECT_EQ(config->text.xxh3, 77u);
  EXPECT_EQ(config->text.tokens, 4096u);
  EXPECT_EQ(config->order, saved.order);
  EXPECT_EQ(config->channel_ids, (std::vector<uint16_t>{0, 1, 2, 1, 2, 3, 2, 3, 4, 3, 4, 5}));
  EXPECT_EQ(config->Layer(1)[0], 2);

  const auto five = ChannelConfig::Load(dir.File("c.json"), Model(2, 4, 2, 8), kFingerprint, 5);
  ASSERT_TRUE(five.ok()) << five.status();
  EXPECT_EQ(five->channels, 5u);
  EXPECT_EQ(five->Layer(1)[5 + 4], 7);
}

TEST(ChannelConfig, RecallIsOptionalAndChecked) {
  TempDir dir;
  ChannelConfig saved = Small();
  saved.context = 512;
  saved.recall = {
      .budget_denominator = 16, .context = 256, .queries = 3, .mass = {0, 0.25, 0.5, 1}};
  ASSERT_TRUE(saved.Save(dir.File("c.json"), kFingerprint).ok());
  const ModelConfig model = Model(2, 4, 2, 8);
  const auto config = ChannelConfig::Load(dir.File("c.json"), model, kFingerprint);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->context, 512u);
  EXPECT_EQ(config->recall.budget_denominator, 16u);
  EXPECT_EQ(config->recall.context, 256u);
  EXPECT_EQ(config->recall.queries, 3u);
  EXPECT_EQ(config->recall.mass, saved.recall.mass);
  const auto error = [&](const json& mass, const json& queries = 3) {
    return LoadError(SavedWith({{"recall",
                                 {{"budget_denominator", 16},
                                  {"context", 256},
                                  {"queries", queries},
                                  {"mass", mass}}}}),
                     model);
  };
  EXPECT_EQ(error({{0, 0}, {1, 0.5}}), "");
  EXPECT_EQ(error({{0, 0}}), "c.json: recall.mass is not a list of 2 layers");
  EXPECT_EQ(error({{0, 0}, {1}}), "c.json: recall.mass is not of 2 heads a layer");
  EXPECT_EQ(error({{0, 0}, {1, 1.5}}), "c.json: recall.mass has 1.5, out of range 0..1");
  EXPECT_EQ(error({{0, 0}, {1, "x"}}), "c.json: recall.mass has \"x\", out of range 0..1");
  EXPECT_NE(error({{0, 0}, {1, 1}}, -1).find("c.json: recall.queries -1"), std::string::npos);
  EXPECT_EQ(LoadError(SavedWith({{"recall", 7}}), model), "c.json: recall is not an object");
}

TEST(ChannelConfig, EveryPoolingHasAName) {
  for (Pooling pooling : {Pooling::kMaxNormalised, Pooling::kSum, Pooling::kSoftmaxMass}) {
    TempDir dir;
    ChannelConfig config = Small();
    config.pooling = pooling;
    ASSERT_TRUE(config.Save(dir.File("c.json"), kFingerprint).ok());
    const auto loaded = ChannelConfig::Load(dir.File("c.json"), Model(2, 2, 2, 8), kFingerprint);
    EXPECT_EQ(loaded->pooling, pooling);
  }
  EXPECT_FALSE(ParsePooling("mean").has_value());
}

TEST(ChannelConfig, LabelsAreOfAFormat) {
  const ModelConfig model = Model(2, 2, 2, 8);
  for (LabelFormat format : kLabelFormats) {
    TempDir dir;
    ChannelConfig config = Small();
    config.label_format = format;
    ASSERT_TRUE(config.Save(dir.File("c.json"), kFingerprint).ok());
    const auto loaded = ChannelConfig::Load(dir.File("c.json"), model, kFingerprint);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ(loaded->label_format, format);
    EXPECT_EQ(loaded->label_layout().page_bytes(),
              LabelBytes(format, config.channels) * kBlockTokens * 2 * 2);
  }
  // Files that name none are of before there was a choice.
  TempDir dir;
  json object = json::parse(SavedWith(json::object()));
  object.erase("label_format");
  WriteFile(dir.File("c.json"), object.dump());
  const auto loaded = ChannelConfig::Load(dir.File("c.json"), model, kFingerprint);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->label_format, LabelFormat::kBf16);
}

TEST(ChannelConfig, RefusesAnotherModelsFile) {
  EXPECT_EQ(LoadError(SavedWith({{"fingerprint", "fedcba9876543210"}}), Model(2, 4, 2, 8)),
            "c.json: fingerprint \"fedcba9876543210\" is not this model's, 0123456789abcdef");
  EXPECT_EQ(LoadError(SavedWith(json::object()), Model(3, 4, 2, 8)),
            "c.json: layers 2 is not the model's 3");
  EXPECT_EQ(LoadError(SavedWith(json::object()), Model(2, 4, 4, 8)),
            "c.json: kv_heads 2 is not the model's 4");
  EXPECT_EQ(LoadError(SavedWith(json::object()), Model(2, 4, 2, 16)),
            "c.json: head_dim 8 is not the model's 16");
}

TEST(ChannelConfig, RefusesUnknownFormats) {
  const ModelConfig model = Model(2, 4, 2, 8);
  EXPECT_EQ(LoadError(SavedWith({{"version", 2}}), model),
            "c.json: version 2 is not known (known: 1)");
  EXPECT_EQ(LoadError(SavedWith({{"format", "x"}}), model),
            "c.json: format \"x\" is not known (known: sparsekv-channels)");
  EXPECT_EQ(LoadError("{}", model), "c.json: format is missing");
  EXPECT_EQ(LoadError(SavedWith({{"label_format", "int3"}}), model),
            "c.json: label_format \"int3\" is not known (known: bf16, int8, int4, int2)");
  EXPECT_NE(LoadError(SavedWith({{"label_format", 4}}), model), "");
  EXPECT_NE(LoadError(SavedWith({{"pooling", "mean"}}), model), "");
  EXPECT_NE(LoadError(SavedWith({{"fingerprint", "12"}}), model), "");
  EXPECT_NE(LoadError(SavedWith({{"fingerprint", 12}}), model), "");
  EXPECT_NE(LoadError("nonsense", model), "");
}

TEST(ChannelConfig, RefusesWrongChannels) {
  const ModelConfig model = Model(2, 4, 2, 8);
  json order = json::parse(SavedWith(json::object()))["order"];
  EXPECT_EQ(LoadError(SavedWith({{"channels", 9}}), model),
            "c.json: channels 9 is not an integer in 1..8");
  EXPECT_NE(LoadError(SavedWith({{"channels", 0}}), model), "");
  EXPECT_NE(LoadError(SavedWith(json::object()), model, "", 9), "");
  order[1][0][2] = 8;
  EXPECT_EQ(LoadError(SavedWith({{"order", order}}), model),
            "c.json: order[1][0] has channel 8 at place 2, out of range 0..7");
  order[1][0][2] = 2;
  EXPECT_EQ(LoadError(SavedWith({{"order", order}}), model),
            "c.json: order[1][0] has channel 2 twice");
  order[1][0] = json::array({1, 2});
  EXPECT_EQ(LoadError(SavedWith({{"order", order}}), model),
            "c.json: order[1][0] is not a list of 8 channels");
  order[1] = json::array();
  EXPECT_EQ(LoadError(SavedWith({{"order", order}}), model),
            "c.json: order[1] is not a list of 2 heads");
  EXPECT_EQ(LoadError(SavedWith({{"order", 3}}), model), "c.json: order is not a list of 2 layers");
}

// A published file of one layer.
std::string Published(const json& orders) {
  json object = json::object();
  for (const auto& [criterion, lists] : orders.items()) {
    object["model.layers.0.self_attn." + criterion + "_proj"] = lists;
  }
  return object.dump();
}

TEST(ChannelConfig, PoolsPublishedOrdersByTheSumOfRanks) {
  TempDir dir;
  // Ranks of the group's two heads add up to 0:3 1:1 2:2 ..: the order is 1, 2, 0, then the rest.
  WriteFile(dir.File("c.json"),
            Published({{"q", {{7, 6, 5, 4, 3, 2, 1, 0}, {0, 1, 2, 3, 4, 5, 6, 7}}},
                       {"qk", {{1, 2, 0, 3, 4, 5, 6, 7}, {1, 0, 2, 3, 4, 5, 7, 6}}}}));
  auto config = ChannelConfig::Load(dir.File("c.json"), Model(1, 2, 1, 8), kFingerprint, 8);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->criterion, "qk");
  EXPECT_EQ(config->channel_ids, (std::vector<uint16_t>{1, 0, 2, 3, 4, 5, 6, 7}));

  config = ChannelConfig::Load(dir.File("c.json"), Model(1, 2, 1, 8), kFingerprint, 0, "q");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->channels, 2u);
  EXPECT_EQ(config->channel_ids, (std::vector<uint16_t>{0, 1}));  // all tie: the lower channels

  config = ChannelConfig::Load(dir.File("c.json"), Model(1, 2, 2, 8), kFingerprint, 1);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->channel_ids, (std::vector<uint16_t>{1, 1}));
}

TEST(ChannelConfig, RefusesWrongPublishedFiles) {
  const json good = {{0, 1, 2, 3, 4, 5, 6, 7}, {0, 1, 2, 3, 4, 5, 6, 7}};
  EXPECT_EQ(LoadError(Published({{"qk", good}}), Model(1, 2, 2, 8)), "");
  EXPECT_EQ(LoadError(Published({{"qk", good}}), Model(2, 2, 2, 8)),
            "c.json: no order of criterion qk, k, q for each of the model's 2 layers");
  EXPECT_EQ(LoadError(Published({{"qk", good}}), Model(1, 2, 2, 8), "k"),
            "c.json: no order of criterion k for each of the model's 1 layers");
  EXPECT_EQ(LoadError(Published({{"qk", good}}), Model(1, 4, 4, 8)),
            "c.json: model.layers.0.self_attn.qk_proj is not a list of 4 heads");
  EXPECT_EQ(LoadError(Published({{"qk", good}}), Model(1, 2, 2, 16)),
            "c.json: model.layers.0.self_attn.qk_proj[0] is not a list of 16 channels");
  json twice = good;
  twice[1][0] = 1;
  EXPECT_EQ(LoadError(Published({{"qk", twice}}), Model(1, 2, 2, 8)),
            "c.json: model.layers.0.self_attn.qk_proj[1] has channel 1 twice");
  json more = json::parse(Published({{"qk", good}}));
  more["model.layers.1.self_attn.qk_proj"] = good;
  EXPECT_EQ(LoadError(more.dump(), Model(1, 2, 2, 8)),
            "c.json: model.layers.1.self_attn.qk_proj is more than the model's 1 layers");
  EXPECT_NE(LoadError(Published({{"qk", good}}), Model(1, 2, 2, 8), "v"), "");
}

// Files as published, where they are there: not part of this source tree.
TEST(ChannelConfig, ReadsPublishedFilesOfRealModels) {
  const char* data = getenv("SPARSEKV_DATA");
  const std::string folder = std::string(data ? data : SPARSEKV_SOURCE_DIR "/../shared/data");
  if (!std::filesystem::exists(folder + "/channel-configs")) {
    GTEST_SKIP() << "no " << folder << "/channel-configs";
  }
  const std::string llama2 = folder + "/channel-configs/Llama-2-7b-hf.json";
  auto config = ChannelConfig::Load(llama2, Model(32, 32, 32, 128), 0, 0, "k");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->channels, 8u);
  EXPECT_EQ(config->channel_ids.size(), 32u * 32 * 8);
  const uint16_t* first = config->Layer(0);
  EXPECT_EQ(std::vector<uint16_t>(first, first + 8),
            (std::vector<uint16_t>{113, 111, 112, 29, 41, 97, 104, 74}));

  const std::string llama3 = folder + "/channel-configs/Llama-3.1-8B-Instruct.json";
  config = ChannelConfig::Load(llama3, Model(32, 32, 8, 128), 0, 16);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->criterion, "qk");
  EXPECT_EQ(config->channel_ids.size(), 32u * 8 * 16);
  config = ChannelConfig::Load(llama3, Model(32, 32, 8, 128), 0, 0, "k");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(std::vector<uint16_t>(config->Layer(0), config->Layer(0) + 8),
            (std::vector<uint16_t>{0, 97, 42, 47, 103, 86, 93, 1}));
}

}  // namespace
}  // namespace sparsekv
