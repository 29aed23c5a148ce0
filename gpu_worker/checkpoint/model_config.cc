#include "gpu_worker/checkpoint/model_config.h"

#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "base/concat.h"
#include "base/limits.h"
#include "gpu_worker/checkpoint/json_file.h"

namespace sparsekv {
namespace {

using nlohmann::json;

constexpr size_t kMaxConfigBytes = 4 << 20;
constexpr uint32_t kMaxHidden = 1 << 16;
constexpr uint32_t kMaxHeads = 1 << 12;
constexpr size_t kMaxEosIds = 64;

void CheckFeatures(JsonFields& fields) {
  if (fields.StringOr("hidden_act", "silu") != "silu") {
    fields.Refuse("hidden_act", "is not supported (supported: silu)");
  }
  if (fields.PositiveOr("partial_rotary_factor", 1.0) != 1.0) {
    fields.Refuse("partial_rotary_factor", "is not supported (supported: 1.0)");
  }
  if (fields.PositiveOr("rope_condense_ratio", 1.0) != 1.0) {  // of the first LongChat's own code
    fields.Refuse("rope_condense_ratio", "is not supported (supported: rope_scaling, linear)");
  }
}

void ReadHeads(const json& object, const FamilyTraits& traits, JsonFields& fields,
               ModelConfig& config) {
  config.heads = fields.Unsigned("num_attention_heads", 1, kMaxHeads);
  if (!traits.kv_heads_default && !object.contains("num_key_value_heads")) {
    fields.Refuse("num_key_value_heads", "is missing");
  }
  config.kv_heads = fields.UnsignedOr("num_key_value_heads", config.heads, 1, kMaxHeads);
  if (config.heads % config.kv_heads != 0) {
    fields.Refuse("num_key_value_heads",
                  Concat("does not divide num_attention_heads ", config.heads));
  } else if (config.group() > kMaxGroup) {
    fields.Refuse("num_key_value_heads",
                  Concat("means more than ", kMaxGroup, " query heads for one KV head"));
  }
  if (fields.Has("head_dim") || traits.head_dim > 0) {
    config.head_dim = fields.UnsignedOr("head_dim", traits.head_dim, 1, kMaxHidden);
  } else {
    config.head_dim = config.hidden_size / config.heads;
    if (config.hidden_size % config.heads != 0) {
      fields.Refuse("hidden_size", Concat("is not a multiple of num_attention_heads ", config.heads,
                                          ", and head_dim is missing"));
    }
  }
  if (config.head_dim < 8 || config.head_dim > kMaxHeadDim || config.head_dim % 8 != 0) {
    fields.RefuseFile(Concat("head_dim ", config.head_dim,
                             " is not supported (supported: multiples of 8 up to ", kMaxHeadDim,
                             ")"));
  }
}

void ReadSizes(const json& object, const FamilyTraits& traits, JsonFields& fields,
               ModelConfig& config) {
  config.family = traits.family;
  config.vocab_size = fields.Unsigned("vocab_size", 1, kMaxVocab);
  config.hidden_size = fields.Unsigned("hidden_size", 1, kMaxHidden);
  config.intermediate_size = fields.Unsigned("intermediate_size", 1, kMaxIntermediate);
  config.layers = fields.Unsigned("num_hidden_layers", 1, kMaxLayers);
  config.max_context =
      fields.UnsignedOr("max_position_embeddings", traits.max_context, 1, kMaxContext);
  config.rms_norm_eps = static_cast<float>(fields.PositiveOr("rms_norm_eps", traits.rms_norm_eps));
  config.tie_embeddings = fields.BoolOr("tie_word_embeddings", false);
  ReadHeads(object, traits, fields, config);
}

absl::Status ReadRope(const json& object, const FamilyTraits& traits, JsonFields& fields,
                      ModelConfig& config) {
  const bool phi3 = traits.family == Family::kPhi3;
  const RopeConfig::Defaults defaults = {
      .theta = traits.rope_theta, .original = phi3 ? 4096u : 0u, .su = phi3};
  auto rope =
      RopeConfig::Read(object, fields.file(), defaults, config.head_dim, config.max_context);
  if (!rope.ok()) return rope.status();
  config.rope_theta = rope->theta;
  config.rope_scaling = rope->scaling;
  // Vicuna and LongChat name the stretched context apart; YaRN's is in its settings.
  const uint32_t stated = fields.UnsignedOr("max_sequence_length", 1, 1, kMaxContext);
  if (rope->scaling.kind != RopeScaling::Kind::kNone) {
    config.max_context = std::max({config.max_context, stated, rope->context});
  }
  return fields.status();
}

// One id or a list of them, each below the vocabulary's size.
void ReadEos(JsonFields& fields, ModelConfig& config) {
  if (!fields.Has("eos_token_id")) return;
  const json& value = fields.Value("eos_token_id");
  const json list = value.is_array() ? value : json::array({value});
  config.eos_ids.clear();
  bool good = list.size() <= kMaxEosIds;
  for (const json& id : list) {
    good = good && id.is_number_unsigned() && id.get<uint64_t>() < config.vocab_size;
    if (good) config.eos_ids.push_back(id.get<uint32_t>());
  }
  if (!good) {
    fields.Refuse("eos_token_id", Concat("is not a token id below vocab_size ", config.vocab_size,
                                         " or a list of at most ", kMaxEosIds, " of them"));
  }
  std::sort(config.eos_ids.begin(), config.eos_ids.end());
}

void ReadTypeAndBos(JsonFields& fields, ModelConfig& config) {
  const char* key = fields.Has("dtype") ? "dtype" : "torch_dtype";  // the newer name, the older
  if (const std::string name = fields.StringOr(key, "float32"); !ParseDType(name)) {
    fields.Refuse(key, "is not supported (supported: float32, float16, bfloat16)");
  } else {
    config.row_dtype = *ParseDType(name);
  }
  if (fields.Has("bos_token_id")) {
    config.bos_id = fields.Unsigned("bos_token_id", 0, config.vocab_size - 1);
  }
}

absl::Status ReadQuantization(JsonFields& fields, ModelConfig& config) {
  if (!fields.Has("quantization_config")) return absl::OkStatus();
  if (!fields.Value("quantization_config").is_object()) {
    fields.Refuse("quantization_config", "is not an object");
    return fields.status();
  }
  auto read = QuantizationConfig::Read(fields.Value("quantization_config"), fields.file());
  if (read.ok()) config.quantization = *std::move(read);
  return read.status();
}

absl::Status ReadGenerationConfig(const std::string& path, ModelConfig& config) {
  absl::StatusOr<json> object = ReadJsonObject(path, kMaxConfigBytes);
  if (absl::IsNotFound(object.status())) return absl::OkStatus();
  if (!object.ok()) return object.status();
  JsonFields fields(*object, path);
  ReadEos(fields, config);
  return fields.status();
}

}  // namespace

std::vector<float> ModelConfig::InverseFrequency(bool long_rope) const {
  return RopeConfig{.theta = rope_theta, .scaling = rope_scaling}.InverseFrequency(head_dim,
                                                                                   long_rope);
}

uint32_t ModelConfig::widest_window() const {
  if (windows.empty() || std::ranges::count(windows, 0u) > 0) return 0;
  return *std::ranges::max_element(windows);
}

float ModelConfig::attention_scale() const {
  const double factor = rope_scaling.attention_factor;
  return static_cast<float>(factor * factor) / std::sqrt(static_cast<float>(head_dim));
}

absl::StatusOr<ModelConfig> ModelConfig::Load(const std::string& model_dir) {
  struct stat info;
  if (stat(model_dir.c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) {
    return absl::NotFoundError(Concat(model_dir, ": no such directory"));
  }
  const std::string path = model_dir + "/config.json";
  absl::StatusOr<json> object = ReadJsonObject(path, kMaxConfigBytes);
  if (!object.ok()) return object.status();
  ModelConfig config;
  JsonFields fields(*object, path);
  const FamilyTraits& traits = ReadFamily(fields);
  CheckFeatures(fields);
  if (!fields.status().ok()) return fields.status();
  ReadSizes(*object, traits, fields, config);
  ReadTypeAndBos(fields, config);
  ReadEos(fields, config);
  if (!fields.status().ok()) return fields.status();
  if (absl::Status rope = ReadRope(*object, traits, fields, config); !rope.ok()) return rope;
  ReadStructure(*object, fields, config);
  if (absl::Status read = ReadQuantization(fields, config); !read.ok()) return read;
  if (!fields.status().ok()) return fields.status();
  absl::Status generation = ReadGenerationConfig(model_dir + "/generation_config.json", config);
  if (!generation.ok()) return generation;
  return config;
}

}  // namespace sparsekv
