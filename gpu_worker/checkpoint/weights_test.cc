#include "gpu_worker/checkpoint/weights.h"

#include <gtest/gtest.h>

#include <string>

#include "gpu_worker/checkpoint/checkpoint_testing.h"

namespace sparsekv {
namespace {

using nlohmann::json;
using testing::SafetensorsBytes;
using testing::TempDir;
using testing::TestTensor;
using testing::TinyConfig;
using testing::TinyTensors;
using testing::WriteFile;
using testing::WriteTinyCheckpoint;

std::string LoadError(const std::string& dir) {
  const auto checkpoint = LoadCheckpoint(dir);
  if (checkpoint.ok()) return "";
  const std::string message(checkpoint.status().message());
  EXPECT_EQ(message.rfind(dir, 0), 0u) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos);
  return message.substr(dir.size());
}

uint64_t FingerprintOf(const std::string& dir) {
  const auto checkpoint = LoadCheckpoint(dir);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return checkpoint.ok() ? checkpoint->weights->fingerprint() : 0;
}

// The tiny checkpoint in two shards, tensors dealt out in turn, and its index.
void WriteShards(const std::string& dir, const json& index_changes = json::object()) {
  std::vector<TestTensor> shards[2];
  json map = json::object();
  int turn = 0;
  for (const TestTensor& tensor : TinyTensors("F32")) {
    const int shard = turn++ % 2;
    shards[shard].push_back(tensor);
    map[tensor.name] = shard == 0 ? "model-1.safetensors" : "model-2.safetensors";
  }
  map.update(index_changes);
  WriteFile(dir + "/config.json", TinyConfig().dump());
  WriteFile(dir + "/model-1.safetensors", SafetensorsBytes(shards[0]));
  WriteFile(dir + "/model-2.safetensors", SafetensorsBytes(shards[1]));
  WriteFile(dir + "/model.safetensors.index.json", json{{"weight_map", map}}.dump());
}

TEST(Weights, BindsEveryTensorInEachType) {
  for (const auto& [name, dtype] : {std::pair<std::string, DType>{"F32", DType::kF32},
                                    {"F16", DType::kF16},
                                    {"BF16", DType::kBF16}}) {
    TempDir dir;
    WriteTinyCheckpoint(dir.path(), name);
    const auto checkpoint = LoadCheckpoint(dir.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const Weights& weights = *checkpoint->weights;
    EXPECT_EQ(checkpoint->config.row_dtype, dtype);
    EXPECT_EQ(weights.embed.dtype, dtype);
    EXPECT_EQ(weights.embed.rows, 40u);
    EXPECT_EQ(weights.embed.cols, 24u);
    EXPECT_EQ(weights.norm.rows, 1u);
    EXPECT_EQ(weights.norm.cols, 24u);
    EXPECT_EQ(weights.norm.dtype, DType::kF32);
    EXPECT_NE(weights.lm_head.data, weights.embed.data);
    ASSERT_EQ(weights.layers.size(), 2u);
    for (const LayerWeights& layer : weights.layers) {
      EXPECT_EQ(layer.wq.rows, 32u);
      EXPECT_EQ(layer.wk.rows, 16u);
      EXPECT_EQ(layer.wo.rows, 24u);
      EXPECT_EQ(layer.wo.cols, 32u);
      EXPECT_EQ(layer.down.cols, 16u);
      EXPECT_NE(layer.down.data, nullptr);
    }
  }
}

TEST(Weights, RowsOfMixedTypesAreFloat32) {
  TempDir dir;
  std::vector<TestTensor> tensors = TinyTensors("BF16");
  for (TestTensor& tensor : tensors) {
    if (tensor.name == "model.layers.1.self_attn.v_proj.weight") tensor.dtype = "F16";
  }
  WriteFile(dir.File("config.json"), TinyConfig().dump());
  WriteFile(dir.File("model.safetensors"), SafetensorsBytes(tensors));
  EXPECT_EQ(LoadCheckpoint(dir.path())->config.row_dtype, DType::kF32);
}

TEST(Weights, TiedEmbeddingsNeedNoOutputMatrix) {
  TempDir dir;
  json config = TinyConfig();
  config["tie_word_embeddings"] = true;
  WriteTinyCheckpoint(dir.path());  // lm_head.weight is there, and is not used
  WriteFile(dir.File("config.json"), config.dump());
  auto checkpoint = LoadCheckpoint(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(checkpoint->weights->lm_head.data, checkpoint->weights->embed.data);

  std::vector<TestTensor> tensors = TinyTensors("F32");
  tensors.pop_back();
  WriteFile(dir.File("model.safetensors"), SafetensorsBytes(tensors));
  checkpoint = LoadCheckpoint(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(checkpoint->weights->lm_head.data, checkpoint->weights->embed.data);

  WriteFile(dir.File("config.json"), TinyConfig().dump());
  EXPECT_EQ(LoadError(dir.path()), ": 1 tensor is missing: lm_head.weight");
}

TEST(Weights, NamesEveryMissingTensor) {
  TempDir dir;
  std::vector<TestTensor> tensors = TinyTensors("F32");
  tensors.erase(tensors.begin() + 3);
  tensors.erase(tensors.begin());
  WriteFile(dir.File("config.json"), TinyConfig().dump());
  WriteFile(dir.File("model.safetensors"), SafetensorsBytes(tensors));
  EXPECT_EQ(LoadError(dir.path()),
            ": 2 tensors are missing: model.embed_tokens.weight, "
            "model.layers.0.self_attn.k_proj.weight");
}

TEST(Weights, RefusesWrongShapesAndTypes) {
  TempDir dir;
  WriteFile(dir.File("config.json"), TinyConfig().dump());
  std::vector<TestTensor> tensors = TinyTensors("F32");
  tensors[2].shape = {24, 32};
  WriteFile(dir.File("model.safetensors"), SafetensorsBytes(tensors));
  EXPECT_EQ(LoadError(dir.path()),
            "/model.safetensors: tensor \"model.layers.0.self_attn.q_proj.weight\" has shape "
            "[24, 32], expected [32, 24]");
  tensors = TinyTensors("F32");
  tensors[1].shape = {1, 24};
  WriteFile(dir.File("model.safetensors"), SafetensorsBytes(tensors));
  EXPECT_EQ(LoadError(dir.path()),
            "/model.safetensors: tensor \"model.layers.0.input_layernorm.weight\" has shape "
            "[1, 24], expected [24]");
  tensors = TinyTensors("F32");
  tensors[0].dtype = "I16";
  WriteFile(dir.File("model.safetensors"), SafetensorsBytes(tensors));
  EXPECT_EQ(LoadError(dir.path()),
            "/model.safetensors: tensor \"model.embed_tokens.weight\" has dtype I16, not supported "
            "(supported: F32, F16, BF16)");
}

TEST(Weights, OtherTensorsMayBeOfAnyType) {
  TempDir dir;
  std::vector<TestTensor> tensors = TinyTensors("F32");
  tensors.push_back({"extra", "I16", {3}});
  WriteFile(dir.File("config.json"), TinyConfig().dump());
  WriteFile(dir.File("model.safetensors"), SafetensorsBytes(tensors));
  EXPECT_EQ(LoadError(dir.path()), "");
}

TEST(Weights, ReadsShards) {
  TempDir dir;
  WriteShards(dir.path());
  EXPECT_EQ(LoadError(dir.path()), "");
}

TEST(Weights, RefusesAWrongIndex) {
  for (const char* shard : {"../model-1.safetensors", "a/b", "..", "", "/etc/passwd", "a\nb"}) {
    TempDir dir;
    WriteShards(dir.path(), {{"model.norm.weight", shard}});
    EXPECT_EQ(LoadError(dir.path()),
              "/model.safetensors.index.json: weight_map.model.norm.weight is not a file name");
  }
  TempDir dir;
  WriteShards(dir.path(), {{"model.norm.weight", "model-9.safetensors"}});
  EXPECT_EQ(LoadError(dir.path()),
            "/model-9.safetensors: No such file or directory (a shard that " +
                dir.File("model.safetensors.index.json") + " names)");
  WriteShards(dir.path(), {{"model.embed_tokens.weight", "model-2.safetensors"}});
  EXPECT_EQ(LoadError(dir.path()),
            "/model-2.safetensors: tensor \"model.embed_tokens.weight\" is not in the shard that " +
                dir.File("model.safetensors.index.json") + " names for it");
  WriteFile(dir.File("model.safetensors.index.json"), R"({"weight_map":[]})");
  EXPECT_NE(LoadError(dir.path()), "");
  WriteFile(dir.File("model.safetensors.index.json"), R"({"metadata":{}})");
  EXPECT_NE(LoadError(dir.path()), "");
}

TEST(Weights, RefusesADirectoryWithoutWeights) {
  TempDir dir;
  WriteFile(dir.File("config.json"), TinyConfig().dump());
  EXPECT_EQ(LoadError(dir.path()), "/model.safetensors: No such file or directory");
  std::filesystem::create_directory(dir.File("model.safetensors"));
  EXPECT_EQ(LoadError(dir.path()), "/model.safetensors: not a regular file");
}

TEST(Weights, FingerprintNamesTheFunctionNotTheFiles) {
  TempDir plain;
  WriteTinyCheckpoint(plain.path());
  const uint64_t fingerprint = FingerprintOf(plain.path());
  EXPECT_EQ(FingerprintOf(plain.path()), fingerprint);

  json longer = TinyConfig();
  longer["max_position_embeddings"] = 256;
  longer["eos_token_id"] = 3;
  WriteFile(plain.File("config.json"), longer.dump());
  EXPECT_EQ(FingerprintOf(plain.path()), fingerprint);

  json theta = TinyConfig();
  theta["rope_theta"] = 20000.0;
  WriteFile(plain.File("config.json"), theta.dump());
  EXPECT_NE(FingerprintOf(plain.path()), fingerprint);

  WriteTinyCheckpoint(plain.path());
  std::string bytes = SafetensorsBytes(TinyTensors("F32"));
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  WriteFile(plain.File("model.safetensors"), bytes);
  EXPECT_NE(FingerprintOf(plain.path()), fingerprint);
}

}  // namespace
}  // namespace sparsekv
