// What families have beside Llama's layers, as their configs say it, and what is refused.
#include "gpu_worker/checkpoint/family.h"

#include <gtest/gtest.h>

#include "gpu_worker/backend_limits.h"
#include "gpu_worker/checkpoint/checkpoint_testing.h"
#include "gpu_worker/checkpoint/model_config.h"

namespace sparsekv {
namespace {

using nlohmann::json;
using testing::TempDir;
using testing::TinyConfig;
using testing::WriteFile;

json ConfigOf(const std::string& type, const std::string& architecture, const json& changes) {
  json config = TinyConfig();
  config["model_type"] = type;
  config["architectures"] = {architecture};
  for (const auto& [key, value] : changes.items()) config[key] = value;
  return config;
}
json Mistral(const json& changes) { return ConfigOf("mistral", "MistralForCausalLM", changes); }
json Qwen2(const json& changes) { return ConfigOf("qwen2", "Qwen2ForCausalLM", changes); }
json Qwen3(const json& changes) { return ConfigOf("qwen3", "Qwen3ForCausalLM", changes); }
json Phi3(const json& changes) { return ConfigOf("phi3", "Phi3ForCausalLM", changes); }
json Mixtral(const json& changes) {
  json all = {{"num_local_experts", 4}, {"num_experts_per_tok", 2}};
  all.update(changes);
  return ConfigOf("mixtral", "MixtralForCausalLM", all);
}
json Qwen3Moe(const json& changes) {
  json all = {{"num_experts", 4}, {"num_experts_per_tok", 2}, {"moe_intermediate_size", 8}};
  all.update(changes);
  return ConfigOf("qwen3_moe", "Qwen3MoeForCausalLM", all);
}

absl::StatusOr<ModelConfig> Load(const json& config) {
  TempDir dir;
  WriteFile(dir.File("config.json"), config.dump());
  return ModelConfig::Load(dir.path());
}

std::string Error(const json& config) {
  const auto loaded = Load(config);
  if (loaded.ok()) return "";
  const std::string message(loaded.status().message());
  EXPECT_EQ(message.find('\n'), std::string::npos);
  return message.substr(message.find("config.json"));
}

using Windows = std::vector<uint32_t>;

TEST(Family, MistralsWindow) {
  EXPECT_EQ(Load(Mistral({{"sliding_window", 24}}))->windows, (Windows{24, 24}));
  EXPECT_EQ(Load(Mistral({{"sliding_window", nullptr}}))->windows, Windows{});
  EXPECT_EQ(Load(Mistral({{"sliding_window", 128}}))->windows, Windows{}) << "the whole context";
  EXPECT_EQ(Load(Mistral({{"sliding_window", 127}}))->windows, (Windows{127, 127}));
  // The class' own default, where nothing is said.
  EXPECT_EQ(Load(Mistral({{"max_position_embeddings", 8192}}))->windows, (Windows{4096, 4096}));
  EXPECT_EQ(Error(Mistral({{"sliding_window", 0}})),
            "config.json: sliding_window 0 is not an integer in 1..4294967295");
  EXPECT_EQ(Error(Mistral({{"sliding_window", 24},
                           {"layer_types", {"full_attention", "sliding_attention"}}})),
            "config.json: layer_types [\"full_attention\",\"sliding_attention\"] is not what "
            "sliding_window means for this model_type");
  EXPECT_EQ(Error(Mistral({{"sliding_window", 24}, {"attention_bias", true}})),
            "config.json: attention_bias true is not supported for this model_type");
}

TEST(Family, Qwen2sWindowsAndBiases) {
  const json window = {{"use_sliding_window", true}, {"sliding_window", 24}};
  const auto with = [&](const json& more) {
    json all = window;
    all.update(more);
    return Qwen2(all);
  };
  EXPECT_TRUE(Load(Qwen2({{"sliding_window", 24}}))->qkv_bias);
  EXPECT_FALSE(Load(Qwen2({{"sliding_window", 24}}))->o_bias);
  EXPECT_EQ(Load(Qwen2({{"sliding_window", 24}}))->windows, Windows{}) << "use_sliding_window";
  EXPECT_EQ(Load(with({{"max_window_layers", 1}}))->windows, (Windows{0, 24}));
  EXPECT_EQ(Load(with({{"max_window_layers", 0}}))->windows, (Windows{24, 24}));
  EXPECT_EQ(Load(with(json::object()))->windows, Windows{}) << "28 layers come first";
  EXPECT_EQ(Load(with({{"layer_types", {"sliding_attention", "full_attention"}}}))->windows,
            (Windows{24, 0}));
  EXPECT_EQ(Error(with({{"layer_types", {"sliding_attention"}}})),
            "config.json: layer_types [\"sliding_attention\"] is not a list of num_hidden_layers = "
            "2 names");
  EXPECT_EQ(Error(with({{"layer_types", {"chunked_attention", "full_attention"}}})),
            "config.json: layer_types [\"chunked_attention\",\"full_attention\"] is not supported "
            "(supported: full_attention, sliding_attention)");
  EXPECT_NE(Error(Qwen2({{"layer_types", {"sliding_attention", "full_attention"}}})), "");
  json none = Qwen2(json::object());
  none.erase("num_key_value_heads");
  EXPECT_EQ(Error(none), "config.json: num_key_value_heads is missing");
}

TEST(Family, Qwen3) {
  EXPECT_TRUE(Load(Qwen3(json::object()))->qk_norm);
  EXPECT_FALSE(Load(Qwen3(json::object()))->qkv_bias);
  EXPECT_TRUE(Load(Qwen3({{"attention_bias", true}}))->o_bias);
  json config = Qwen3(json::object());
  config.erase("head_dim");
  EXPECT_EQ(Load(config)->head_dim, 128u);
}

TEST(Family, Experts) {
  const auto mixtral = Load(Mixtral(json::object()));
  ASSERT_TRUE(mixtral.ok()) << mixtral.status();
  EXPECT_EQ(mixtral->experts.count, 4u);
  EXPECT_EQ(mixtral->experts.intermediate_size, 16u);
  EXPECT_TRUE(mixtral->experts.normalise);
  EXPECT_TRUE(mixtral->has_experts(0) && mixtral->has_experts(1));
  const auto qwen = Load(Qwen3Moe({{"mlp_only_layers", {0}}}));
  ASSERT_TRUE(qwen.ok()) << qwen.status();
  EXPECT_EQ(qwen->experts.intermediate_size, 8u);
  EXPECT_FALSE(qwen->experts.normalise);
  EXPECT_FALSE(qwen->has_experts(0));
  EXPECT_TRUE(qwen->has_experts(1));
  EXPECT_FALSE(Load(Qwen3Moe({{"decoder_sparse_step", 2}}))->has_experts(0));
  // transformers 5 writes another name.
  json newer = Qwen3Moe({{"num_local_experts", 3}});
  newer.erase("num_experts");
  EXPECT_EQ(Load(newer)->experts.count, 3u);
  EXPECT_EQ(Error(Mixtral({{"num_experts_per_tok", 0}})),
            "config.json: num_experts_per_tok 0 is not an integer in 1..4");
  EXPECT_EQ(Error(Qwen3Moe({{"num_experts_per_tok", 5}})),
            "config.json: num_experts_per_tok 5 is not an integer in 1..4");
  EXPECT_EQ(Error(Qwen3Moe({{"mlp_only_layers", {2}}})),
            "config.json: mlp_only_layers [2] is not a list of layers below num_hidden_layers 2");
  EXPECT_EQ(Error(Qwen3Moe({{"num_hidden_layers", 1000}, {"num_experts", 1000}})),
            "config.json: num_experts 1000 means more than 65536 experts in all layers");
}

TEST(Family, Phi3) {
  EXPECT_TRUE(Load(Phi3(json::object()))->fused_projections);
  EXPECT_EQ(Load(Phi3({{"sliding_window", 24}}))->windows, (Windows{24, 24}));
  EXPECT_EQ(Error(Phi3({{"partial_rotary_factor", 0.75}})),
            "config.json: partial_rotary_factor 0.75 is not supported (supported: 1.0)");
  // Names of early checkpoints.
  for (const char* type : {"su", "yarn", "longrope"}) {
    const auto config = Load(
        Phi3({{"max_position_embeddings", 8192},
              {"rope_scaling",
               {{"type", type}, {"short_factor", {1, 1, 1, 1}}, {"long_factor", {2, 2, 2, 2}}}}}));
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->rope_scaling.kind, RopeScaling::Kind::kLongRope);
    EXPECT_EQ(config->rope_scaling.original_context, 4096u);
  }
}

TEST(Family, WhatCudaCannotDoNamesItsField) {
  const auto why = [](const json& config) { return WhyNotOnCuda(*Load(config)); };
  const std::string end = " is not in this version of backend cuda";
  EXPECT_EQ(why(TinyConfig()), "");
  EXPECT_EQ(why(Mistral({{"sliding_window", nullptr}})), "");
  EXPECT_EQ(why(Phi3(json::object())), "");
  EXPECT_EQ(why(Mistral({{"sliding_window", 24}})), "config.json: sliding_window 24" + end);
  EXPECT_EQ(why(Mixtral(json::object())), "config.json: num_experts_per_tok 2" + end);
  EXPECT_EQ(why(Qwen2(json::object())),
            "config.json: architectures [\"Qwen2ForCausalLM\"], with biases of q, k and v," + end);
  EXPECT_EQ(why(Qwen3(json::object())),
            "config.json: architectures [\"Qwen3ForCausalLM\"], with norms of q and k," + end);
  json biased = TinyConfig();
  biased["attention_bias"] = true;
  EXPECT_EQ(why(biased), "config.json: attention_bias true" + end);
  biased["attention_bias"] = false;
  biased["mlp_bias"] = true;
  EXPECT_EQ(why(biased), "config.json: mlp_bias true" + end);
}

}  // namespace
}  // namespace sparsekv
