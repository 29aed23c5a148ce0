#include "gpu_worker/checkpoint/model_config.h"

#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>

#include "absl/status/status.h"
#include "base/check.h"
#include "base/concat.h"
#include "base/limits.h"
#include "gpu_worker/checkpoint/json_file.h"

namespace sparsekv {
namespace {

using nlohmann::json;

constexpr size_t kMaxConfigBytes = 4 << 20;
constexpr uint32_t kMaxHidden = 1 << 16;
constexpr uint32_t kMaxIntermediate = 1 << 20;
constexpr uint32_t kMaxHeads = 1 << 12;
constexpr size_t kMaxEosIds = 64;

void CheckArchitecture(JsonFields& fields) {
  if (fields.Has("architectures")) {
    const json& names = fields.Value("architectures");
    if (names != json::array({"LlamaForCausalLM"})) {
      fields.Refuse("architectures", "is not supported (supported: [\"LlamaForCausalLM\"])");
    }
  }
  if (fields.String("model_type") != "llama") {
    fields.Refuse("model_type", "is not supported (supported: llama)");
  }
  if (fields.StringOr("hidden_act", "silu") != "silu") {
    fields.Refuse("hidden_act", "is not supported (supported: silu)");
  }
  for (const char* bias : {"attention_bias", "mlp_bias"}) {
    if (fields.BoolOr(bias, false)) fields.Refuse(bias, "is not supported (supported: false)");
  }
  if (fields.PositiveOr("partial_rotary_factor", 1.0) != 1.0) {
    fields.Refuse("partial_rotary_factor", "is not supported (supported: 1.0)");
  }
  if (fields.Has("quantization_config")) {
    fields.Refuse("quantization_config", "is not supported (supported: unquantised weights)");
  }
}

void ReadSizes(JsonFields& fields, ModelConfig& config) {
  config.vocab_size = fields.Unsigned("vocab_size", 1, kMaxVocab);
  config.hidden_size = fields.Unsigned("hidden_size", 1, kMaxHidden);
  config.intermediate_size = fields.Unsigned("intermediate_size", 1, kMaxIntermediate);
  config.layers = fields.Unsigned("num_hidden_layers", 1, kMaxLayers);
  config.heads = fields.Unsigned("num_attention_heads", 1, kMaxHeads);
  config.kv_heads = fields.UnsignedOr("num_key_value_heads", config.heads, 1, kMaxHeads);
  config.max_context = fields.UnsignedOr("max_position_embeddings", 2048, 1, kMaxContext);
  config.rms_norm_eps = static_cast<float>(fields.PositiveOr("rms_norm_eps", 1e-6));
  config.tie_embeddings = fields.BoolOr("tie_word_embeddings", false);
  if (config.heads % config.kv_heads != 0) {
    fields.Refuse("num_key_value_heads",
                  Concat("does not divide num_attention_heads ", config.heads));
  } else if (config.group() > kMaxGroup) {
    fields.Refuse("num_key_value_heads",
                  Concat("means more than ", kMaxGroup, " query heads for one KV head"));
  }
  if (fields.Has("head_dim")) {
    config.head_dim = fields.Unsigned("head_dim", 1, kMaxHidden);
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

// The rope settings proper: the object rope_scaling, or rope_parameters of newer files.
absl::Status ReadRopeObject(const json& object, const std::string& file, const std::string& name,
                            ModelConfig& config) {
  JsonFields fields(object, file, name + ".");
  config.rope_theta = fields.PositiveOr("rope_theta", config.rope_theta);
  if (fields.PositiveOr("partial_rotary_factor", 1.0) != 1.0) {
    fields.Refuse("partial_rotary_factor", "is not supported (supported: 1.0)");
  }
  const char* key = fields.Has("rope_type") ? "rope_type" : "type";
  const std::string type = fields.StringOr(key, "default");
  if (type == "llama3") {
    RopeScaling& scaling = config.rope_scaling;
    scaling.kind = RopeScaling::Kind::kLlama3;
    scaling.factor = fields.Positive("factor");
    scaling.low_freq_factor = fields.Positive("low_freq_factor");
    scaling.high_freq_factor = fields.Positive("high_freq_factor");
    scaling.original_context = fields.Unsigned("original_max_position_embeddings", 1, kMaxContext);
    if (scaling.high_freq_factor <= scaling.low_freq_factor) {
      fields.Refuse("high_freq_factor", "is not larger than low_freq_factor");
    }
  } else if (type != "default") {
    fields.Refuse(key, "is not supported (supported: default, llama3)");
  }
  return fields.status();
}

absl::Status ReadRope(JsonFields& fields, ModelConfig& config) {
  config.rope_theta = fields.PositiveOr("rope_theta", 10000.0);
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    if (!fields.Has(name)) continue;
    if (!fields.Value(name).is_object()) {
      fields.Refuse(name, "is not an object");
      return fields.status();
    }
    absl::Status read = ReadRopeObject(fields.Value(name), fields.file(), name, config);
    if (!read.ok()) return read;
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

absl::Status ReadGenerationConfig(const std::string& path, ModelConfig& config) {
  absl::StatusOr<json> object = ReadJsonObject(path, kMaxConfigBytes);
  if (absl::IsNotFound(object.status())) return absl::OkStatus();
  if (!object.ok()) return object.status();
  JsonFields fields(*object, path);
  ReadEos(fields, config);
  return fields.status();
}

// transformers' _compute_llama3_parameters: long wavelengths turn `factor` times slower, short ones
// as before, the band between is blended. All in float32, as there, where a number over a tensor is
// the tensor's reciprocal times the number.
float Llama3Frequency(float frequency, const RopeScaling& scaling) {
  const float factor = static_cast<float>(scaling.factor);
  const double context = scaling.original_context;
  const float low_wavelength = static_cast<float>(context / scaling.low_freq_factor);
  const float high_wavelength = static_cast<float>(context / scaling.high_freq_factor);
  const float wavelength = 1.0f / frequency * static_cast<float>(2 * std::numbers::pi);
  if (wavelength < high_wavelength) return frequency;
  if (wavelength > low_wavelength) return frequency / factor;
  const float low = static_cast<float>(scaling.low_freq_factor);
  const float band = static_cast<float>(scaling.high_freq_factor - scaling.low_freq_factor);
  const float smooth = (1.0f / wavelength * static_cast<float>(context) - low) / band;
  return (1.0f - smooth) * frequency / factor + smooth * frequency;
}

}  // namespace

std::vector<float> ModelConfig::InverseFrequency() const {
  CHECK_EQ(head_dim % 2, 0u);
  std::vector<float> frequencies(head_dim / 2);
  for (uint32_t i = 0; i < frequencies.size(); ++i) {
    // A float32 power, rounded once: computed in double.
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    const float power =
        static_cast<float>(std::pow(static_cast<float>(rope_theta), double{exponent}));
    frequencies[i] = 1.0f / power;
    if (rope_scaling.kind == RopeScaling::Kind::kLlama3) {
      frequencies[i] = Llama3Frequency(frequencies[i], rope_scaling);
    }
  }
  return frequencies;
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
  CheckArchitecture(fields);
  if (!fields.status().ok()) return fields.status();
  ReadSizes(fields, config);
  ReadTypeAndBos(fields, config);
  ReadEos(fields, config);
  if (absl::Status rope = ReadRope(fields, config); !rope.ok()) return rope;
  absl::Status generation = ReadGenerationConfig(model_dir + "/generation_config.json", config);
  if (!generation.ok()) return generation;
  return config;
}

}  // namespace sparsekv
