#include "gpu_worker/checkpoint/model_config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "gpu_worker/checkpoint/checkpoint_testing.h"

namespace sparsekv {
namespace {

using nlohmann::json;
using testing::TempDir;
using testing::TinyConfig;
using testing::WriteFile;

absl::StatusOr<ModelConfig> LoadText(const std::string& text) {
  TempDir dir;
  WriteFile(dir.File("config.json"), text);
  return ModelConfig::Load(dir.path());
}

absl::StatusOr<ModelConfig> LoadWith(const json& changes) {
  json config = TinyConfig();
  for (const auto& [key, value] : changes.items()) config[key] = value;
  return LoadText(config.dump());
}

// The error for these changed fields, from the file's name on.
std::string ErrorWith(const json& changes) {
  const auto config = LoadWith(changes);
  if (config.ok()) return "";
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << config.status();
  const std::string message(config.status().message());
  EXPECT_EQ(message.find('\n'), std::string::npos);
  return message.substr(message.find("config.json"));
}

json Llama3Scaling() {
  return {{"rope_type", "llama3"},
          {"factor", 8.0},
          {"low_freq_factor", 1.0},
          {"high_freq_factor", 4.0},
          {"original_max_position_embeddings", 8192}};
}

TEST(ModelConfig, ReadsEveryNumber) {
  const auto config = LoadText(TinyConfig().dump());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->vocab_size, 40u);
  EXPECT_EQ(config->hidden_size, 24u);
  EXPECT_EQ(config->intermediate_size, 16u);
  EXPECT_EQ(config->layers, 2u);
  EXPECT_EQ(config->heads, 4u);
  EXPECT_EQ(config->kv_heads, 2u);
  EXPECT_EQ(config->group(), 2u);
  EXPECT_EQ(config->head_dim, 8u);
  EXPECT_EQ(config->max_context, 128u);
  EXPECT_EQ(config->rms_norm_eps, 1e-5f);
  EXPECT_EQ(config->rope_theta, 10000.0);
  EXPECT_EQ(config->rope_scaling.kind, RopeScaling::Kind::kNone);
  EXPECT_FALSE(config->tie_embeddings);
  EXPECT_EQ(config->bos_id, 1u);
  EXPECT_EQ(config->eos_ids, std::vector<uint32_t>{2});
  EXPECT_EQ(config->row_dtype, DType::kF32);
}

TEST(ModelConfig, HasTheDefaultsOfTheFormat) {
  json config = TinyConfig();
  for (const char* key : {"num_key_value_heads", "head_dim", "rope_theta", "rope_scaling",
                          "tie_word_embeddings", "bos_token_id", "eos_token_id", "torch_dtype"}) {
    config.erase(key);
  }
  config["hidden_size"] = 32;
  const auto loaded = LoadText(config.dump());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->kv_heads, 4u);
  EXPECT_EQ(loaded->head_dim, 8u);
  EXPECT_EQ(loaded->rope_theta, 10000.0);
  EXPECT_TRUE(loaded->eos_ids.empty());
  EXPECT_FALSE(loaded->bos_id.has_value());
}

TEST(ModelConfig, ReadsTheNewerRopeForm) {
  json rope = Llama3Scaling();
  rope["rope_theta"] = 500000.0;
  json config = TinyConfig();
  config.erase("rope_theta");
  config.erase("rope_scaling");
  config.erase("torch_dtype");
  config["rope_parameters"] = rope;
  config["dtype"] = "bfloat16";
  const auto loaded = LoadText(config.dump());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->rope_theta, 500000.0);
  EXPECT_EQ(loaded->rope_scaling.kind, RopeScaling::Kind::kLlama3);
  EXPECT_EQ(loaded->rope_scaling.factor, 8.0);
  EXPECT_EQ(loaded->rope_scaling.original_context, 8192u);
  EXPECT_EQ(loaded->row_dtype, DType::kBF16);
  config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 20000.0}};
  EXPECT_EQ(LoadText(config.dump())->rope_theta, 20000.0);
}

TEST(ModelConfig, TakesEosIdsOfTheGenerationConfig) {
  TempDir dir;
  WriteFile(dir.File("config.json"), TinyConfig().dump());
  WriteFile(dir.File("generation_config.json"), R"({"eos_token_id":[39,7]})");
  const auto config = ModelConfig::Load(dir.path());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->eos_ids, (std::vector<uint32_t>{7, 39}));
  WriteFile(dir.File("generation_config.json"), R"({"eos_token_id":40})");
  EXPECT_FALSE(ModelConfig::Load(dir.path()).ok());
}

TEST(ModelConfig, InverseFrequenciesArePowersOfTheta) {
  const auto config = LoadWith({{"head_dim", 128}, {"rope_theta", 500000.0}});
  ASSERT_TRUE(config.ok()) << config.status();
  const std::vector<float> plain = config->InverseFrequency();
  ASSERT_EQ(plain.size(), 64u);
  for (int i = 0; i < 64; ++i) {
    const double exact = std::pow(500000.0, -i / 64.0);
    EXPECT_NEAR(plain[i] / exact, 1.0, 2e-7) << i;
  }
  const auto scaled =
      LoadWith({{"head_dim", 128}, {"rope_theta", 500000.0}, {"rope_scaling", Llama3Scaling()}});
  ASSERT_TRUE(scaled.ok()) << scaled.status();
  const std::vector<float> stretched = scaled->InverseFrequency();
  EXPECT_EQ(stretched[0], plain[0]);        // wavelength 6: as before
  EXPECT_EQ(stretched[63], plain[63] / 8);  // far longer than the old context: 8 times slower
  for (int i = 0; i < 64; ++i) {
    EXPECT_LE(stretched[i], plain[i]);
    EXPECT_GE(stretched[i], plain[i] / 8);
  }
}

TEST(ModelConfig, RefusesOtherArchitectures) {
  EXPECT_EQ(ErrorWith({{"architectures", {"MistralForCausalLM"}}}),
            "config.json: architectures [\"MistralForCausalLM\"] is not supported for model_type "
            "llama (supported: [\"LlamaForCausalLM\"])");
  EXPECT_EQ(ErrorWith({{"model_type", "gemma2"}}),
            "config.json: model_type \"gemma2\" is not supported (supported: llama, mistral, "
            "mixtral, phi3, qwen2, qwen3, qwen3_moe)");
  EXPECT_EQ(ErrorWith({{"model_type", 3}}), "config.json: model_type 3 is not a string");
  EXPECT_EQ(ErrorWith({{"hidden_act", "gelu"}}),
            "config.json: hidden_act \"gelu\" is not supported (supported: silu)");
  EXPECT_EQ(ErrorWith({{"sliding_window", 4096}}),
            "config.json: sliding_window 4096 is not supported for model_type llama "
            "(supported: null)");
  EXPECT_NE(ErrorWith({{"quantization_config", {{"bits", 4}}}}), "");
  EXPECT_EQ(ErrorWith({{"partial_rotary_factor", 0.5}}),
            "config.json: partial_rotary_factor 0.5 is not supported (supported: 1.0)");
  EXPECT_EQ(
      ErrorWith({{"rope_condense_ratio", 8}}),
      "config.json: rope_condense_ratio 8 is not supported (supported: rope_scaling, linear)");
  EXPECT_NE(ErrorWith({{"torch_dtype", "float64"}}), "");
}

json RopeOf(const std::string& type, json rest) {
  rest["rope_type"] = type;
  return {{"rope_scaling", std::move(rest)}};
}

TEST(ModelConfig, ReadsTheRopeTypes) {
  auto config = LoadWith(RopeOf("linear", {{"factor", 4.0}}));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->InverseFrequency()[0], 0.25f);
  EXPECT_EQ(config->max_context, 128u);
  json vicuna = RopeOf("linear", {{"factor", 4.0}});
  vicuna["max_sequence_length"] = 512;
  EXPECT_EQ(LoadWith(vicuna)->max_context, 512u);
  // Dynamic NTK changes nothing up to max_position_embeddings.
  config = LoadWith(RopeOf("dynamic", {{"factor", 4.0}}));
  EXPECT_EQ(config->InverseFrequency(), LoadWith(json::object())->InverseFrequency());
  config = LoadWith(RopeOf("yarn", {{"factor", 4.0}, {"original_max_position_embeddings", 64}}));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->max_context, 256u);
  EXPECT_NEAR(config->rope_scaling.attention_factor, 0.1 * std::log(4.0) + 1, 1e-12);
  EXPECT_NEAR(config->attention_scale() * std::sqrt(8.0), std::pow(0.1 * std::log(4.0) + 1, 2),
              1e-6);
  const json factors = {1.0, 2.0, 3.0, 4.0};
  config = LoadWith(RopeOf("longrope", {{"short_factor", factors},
                                        {"long_factor", {2.0, 4.0, 6.0, 8.0}},
                                        {"original_max_position_embeddings", 32}}));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_FALSE(config->long_rope(32));
  EXPECT_TRUE(config->long_rope(33));
  EXPECT_EQ(config->InverseFrequency(true)[0], 0.5f);
  EXPECT_EQ(config->InverseFrequency()[0], 1.0f);
  EXPECT_NEAR(config->rope_scaling.attention_factor, std::sqrt(1 + std::log(4) / std::log(32)),
              1e-12);
}

TEST(ModelConfig, RefusesOtherRopeTypes) {
  EXPECT_EQ(ErrorWith(RopeOf("spiral", {{"factor", 4.0}})),
            "config.json: rope_scaling.rope_type \"spiral\" is not supported (supported: default, "
            "linear, dynamic, llama3, yarn, longrope)");
  EXPECT_EQ(ErrorWith({{"rope_scaling", {{"type", "su"}, {"factor", 2.0}}}}),
            "config.json: rope_scaling.type \"su\" is not supported (supported: default, linear, "
            "dynamic, llama3, yarn, longrope)");
  EXPECT_EQ(ErrorWith({{"rope_parameters", {{"rope_type", "linear"}}}}),
            "config.json: rope_parameters.factor is missing");
  EXPECT_EQ(ErrorWith(RopeOf("dynamic", {{"factor", 2.0}, {"alpha", 1000.0}})),
            "config.json: rope_scaling.alpha 1000.0 is not known for this rope_type");
  EXPECT_EQ(ErrorWith(RopeOf("linear", {{"factor", 2.0}, {"partial_rotary_factor", 0.5}})),
            "config.json: rope_scaling.partial_rotary_factor 0.5 is not supported "
            "(supported: 1.0)");
  EXPECT_EQ(ErrorWith(RopeOf("longrope", {{"short_factor", {1, 2}}})),
            "config.json: rope_scaling.short_factor [1,2] is not a list of head_dim / 2 = 4 "
            "positive numbers");
  EXPECT_NE(ErrorWith(RopeOf("yarn", {{"factor", 1e9}, {"original_max_position_embeddings", 64}})),
            "");
  json outside = RopeOf("yarn", {{"factor", 2.0}});
  outside["original_max_position_embeddings"] = "64";
  EXPECT_EQ(ErrorWith(outside),
            "config.json: original_max_position_embeddings \"64\" is not an integer in "
            "1..16777216");
  EXPECT_EQ(ErrorWith({{"rope_scaling", 3}}), "config.json: rope_scaling 3 is not an object");
  EXPECT_EQ(ErrorWith({{"rope_scaling", {{"type", "linear"}, {"factor", 2.0}, {"a\nb\x7f", 1}}}}),
            "config.json: rope_scaling.a?b? 1 is not known for this rope_type");
  json scaling = Llama3Scaling();
  scaling.erase("factor");
  EXPECT_EQ(ErrorWith({{"rope_scaling", scaling}}), "config.json: rope_scaling.factor is missing");
  scaling = Llama3Scaling();
  scaling["high_freq_factor"] = 1.0;
  EXPECT_NE(ErrorWith({{"rope_scaling", scaling}}), "");
}

TEST(ModelConfig, RefusesSizesOutOfBounds) {
  EXPECT_EQ(ErrorWith({{"vocab_size", 0}}),
            "config.json: vocab_size 0 is not an integer in 1..1048576");
  EXPECT_EQ(ErrorWith({{"vocab_size", nullptr}}), "config.json: vocab_size is missing");
  for (const char* key :
       {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"}) {
    for (const json& value : {json(-1), json(0), json(2.5), json("8"), json(1ull << 40),
                              json(~0ull), json(true), json::array()}) {
      const std::string error = ErrorWith({{key, value}});
      EXPECT_EQ(error.rfind(std::string("config.json: ") + key + " " + value.dump(), 0), 0u)
          << error;
    }
  }
  EXPECT_EQ(ErrorWith({{"num_key_value_heads", 3}}),
            "config.json: num_key_value_heads 3 does not divide num_attention_heads 4");
  EXPECT_EQ(ErrorWith({{"head_dim", 12}}),
            "config.json: head_dim 12 is not supported (supported: multiples of 8 up to 256)");
  EXPECT_NE(ErrorWith({{"head_dim", 264}}), "");
  EXPECT_NE(ErrorWith({{"rope_theta", 0}}), "");
  EXPECT_NE(ErrorWith({{"rms_norm_eps", -1}}), "");
  EXPECT_NE(ErrorWith({{"eos_token_id", 40}}), "");
  EXPECT_NE(ErrorWith({{"eos_token_id", {1, "x"}}}), "");
  EXPECT_NE(ErrorWith({{"bos_token_id", 40}}), "");
  EXPECT_NE(ErrorWith({{"num_attention_heads", 4096}, {"num_key_value_heads", 1}}), "");
}

TEST(ModelConfig, RefusesWhatIsNoConfig) {
  TempDir dir;
  const auto none = ModelConfig::Load(dir.File("none"));
  EXPECT_EQ(none.status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(none.status().message(), dir.File("none") + ": no such directory");
  const auto empty = ModelConfig::Load(dir.path());
  EXPECT_EQ(empty.status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(empty.status().message(), dir.File("config.json") + ": No such file or directory");
  std::filesystem::create_directory(dir.File("config.json"));
  EXPECT_EQ(ModelConfig::Load(dir.path()).status().message(),
            dir.File("config.json") + ": not a regular file");

  for (const char* text : {"", "{", "nonsense", "[1,2]", "{} {}", "{\"a\":1,\"a\":2}", "1e999",
                           "{\"model_type\":\"\xff\"}"}) {
    EXPECT_EQ(LoadText(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
  const std::string deep = "{\"a\":" + std::string(1'000'000, '[');
  EXPECT_EQ(LoadText(deep).status().code(), absl::StatusCode::kInvalidArgument);
  const std::string large = "{\"a\":\"" + std::string(5'000'000, 'x') + "\"}";
  EXPECT_EQ(LoadText(large).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace sparsekv
