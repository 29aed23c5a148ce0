#include "gpu_worker/checkpoint/family.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

#include "base/concat.h"
#include "base/limits.h"
#include "gpu_worker/checkpoint/json_file.h"
#include "gpu_worker/checkpoint/model_config.h"

namespace sparsekv {
namespace {

using nlohmann::json;

constexpr uint32_t kMaxExperts = 1024;
constexpr uint32_t kMaxExpertsOfAll = 1 << 16;  // over all layers

constexpr FamilyTraits kFamilies[] = {
    {.family = Family::kLlama,
     .model_type = "llama",
     .architecture = "LlamaForCausalLM",
     .kv_heads_default = true},
    {.family = Family::kMistral,
     .model_type = "mistral",
     .architecture = "MistralForCausalLM",
     .max_context = 131072},
    {.family = Family::kMixtral,
     .model_type = "mixtral",
     .architecture = "MixtralForCausalLM",
     .max_context = 131072,
     .rms_norm_eps = 1e-5,
     .rope_theta = 1e6},
    {.family = Family::kPhi3,
     .model_type = "phi3",
     .architecture = "Phi3ForCausalLM",
     .max_context = 4096,
     .rms_norm_eps = 1e-5,
     .kv_heads_default = true},
    {.family = Family::kQwen2,
     .model_type = "qwen2",
     .architecture = "Qwen2ForCausalLM",
     .max_context = 32768},
    {.family = Family::kQwen3,
     .model_type = "qwen3",
     .architecture = "Qwen3ForCausalLM",
     .max_context = 32768,
     .head_dim = 128},
    {.family = Family::kQwen3Moe,
     .model_type = "qwen3_moe",
     .architecture = "Qwen3MoeForCausalLM",
     .max_context = 32768},
};

bool IsQwen(Family family) {
  return family == Family::kQwen2 || family == Family::kQwen3 || family == Family::kQwen3Moe;
}

// The window that config.json speaks of, 0 = none. Mistral's class has one where nothing is said.
uint32_t StatedWindow(const json& object, JsonFields& fields, const ModelConfig& config) {
  if (IsQwen(config.family) && !fields.BoolOr("use_sliding_window", false)) return 0;
  const bool silent = !object.contains("sliding_window");
  const bool has_default = config.family == Family::kMistral || IsQwen(config.family);
  const uint32_t fallback = silent && has_default ? 4096 : 0;
  return fields.UnsignedOr("sliding_window", fallback, 1, UINT32_MAX);
}

// layer_types: which of the layers slide. Families that slide in all layers or in none may say so.
void ReadLayerTypes(JsonFields& fields, uint32_t window, ModelConfig& config) {
  const bool may_differ = config.family == Family::kQwen2 || config.family == Family::kQwen3;
  const json& types = fields.Value("layer_types");
  if (!types.is_array() || types.size() != config.layers) {
    fields.Refuse("layer_types",
                  Concat("is not a list of num_hidden_layers = ", config.layers, " names"));
    return;
  }
  for (uint32_t i = 0; i < config.layers; ++i) {
    const std::string type = types[i].is_string() ? types[i].get<std::string>() : "";
    const bool slides = type == "sliding_attention";
    if (!slides && type != "full_attention") {
      fields.Refuse("layer_types",
                    "is not supported (supported: full_attention, "
                    "sliding_attention)");
    } else if (slides && window == 0) {
      fields.Refuse("layer_types", "has sliding_attention, but no window is given");
    } else if (slides != (window > 0) && !may_differ) {
      fields.Refuse("layer_types", "is not what sliding_window means for this model_type");
    }
    config.windows[i] = slides ? window : 0;
  }
}

void ReadWindows(const json& object, JsonFields& fields, ModelConfig& config) {
  if (config.family == Family::kLlama) {
    if (fields.Has("sliding_window")) {
      fields.Refuse("sliding_window", "is not supported for model_type llama (supported: null)");
    }
    return;
  }
  const uint32_t window = StatedWindow(object, fields, config);
  config.windows.assign(config.layers, window);
  if (fields.Has("layer_types")) {
    ReadLayerTypes(fields, window, config);
  } else if (config.family == Family::kQwen2 || config.family == Family::kQwen3) {
    const uint32_t full = fields.UnsignedOr("max_window_layers", 28, 0, UINT32_MAX);
    std::fill_n(config.windows.begin(), std::min(full, config.layers), 0);
  }
  // What is as long as the longest sequence cuts nothing.
  for (uint32_t& one : config.windows) one = one >= config.max_context ? 0 : one;
  if (std::ranges::all_of(config.windows, [](uint32_t one) { return one == 0; })) {
    config.windows.clear();
  }
}

void ReadBiases(JsonFields& fields, ModelConfig& config) {
  const bool asked = fields.BoolOr("attention_bias", false);
  switch (config.family) {
    case Family::kQwen2:
      config.qkv_bias = true;
      break;
    case Family::kLlama:
      config.mlp_bias = fields.BoolOr("mlp_bias", false);
      [[fallthrough]];
    case Family::kQwen3:
    case Family::kQwen3Moe:
      config.qkv_bias = config.o_bias = asked;
      return;
    default:
      break;
  }
  if (asked) fields.Refuse("attention_bias", "is not supported for this model_type");
}

// mlp_only_layers and decoder_sparse_step: which layers have experts.
void ReadExpertLayers(JsonFields& fields, ModelConfig& config) {
  const uint32_t step = fields.UnsignedOr("decoder_sparse_step", 1, 1, kMaxLayers);
  for (uint32_t i = 0; i < config.layers; ++i) config.experts.layers[i] = (i + 1) % step == 0;
  if (!fields.Has("mlp_only_layers")) return;
  const json& list = fields.Value("mlp_only_layers");
  const bool good = list.is_array() && std::ranges::all_of(list, [&](const json& layer) {
                      return layer.is_number_unsigned() && layer.get<uint64_t>() < config.layers;
                    });
  if (!good) {
    fields.Refuse("mlp_only_layers",
                  Concat("is not a list of layers below num_hidden_layers ", config.layers));
    return;
  }
  for (const json& layer : list) config.experts.layers[layer.get<uint32_t>()] = false;
}

void ReadExperts(JsonFields& fields, ModelConfig& config) {
  const bool mixtral = config.family == Family::kMixtral;
  if (!mixtral && config.family != Family::kQwen3Moe) return;
  ExpertsConfig& experts = config.experts;
  // transformers 5 has one name for both families.
  const char* name = fields.Has("num_experts") && !mixtral ? "num_experts" : "num_local_experts";
  experts.count = fields.Unsigned(name, 1, kMaxExperts);
  experts.per_token = fields.Unsigned("num_experts_per_tok", 1, experts.count);
  experts.intermediate_size = mixtral
                                  ? config.intermediate_size
                                  : fields.Unsigned("moe_intermediate_size", 1, kMaxIntermediate);
  experts.normalise = mixtral || fields.BoolOr("norm_topk_prob", false);
  if (experts.count * config.layers > kMaxExpertsOfAll) {
    fields.Refuse(name, Concat("means more than ", kMaxExpertsOfAll, " experts in all layers"));
  }
  experts.layers.assign(config.layers, true);
  if (!mixtral) ReadExpertLayers(fields, config);
}

}  // namespace

const char* ModelConfig::architecture() const {
  for (const FamilyTraits& traits : kFamilies) {
    if (traits.family == family) return traits.architecture;
  }
  return "";
}

const FamilyTraits& ReadFamily(JsonFields& fields) {
  const std::string type = fields.String("model_type");
  std::string supported;
  for (const FamilyTraits& traits : kFamilies) {
    if (!supported.empty()) supported += ", ";
    supported += traits.model_type;
    if (type != traits.model_type) continue;
    const std::string only = Concat("[\"", traits.architecture, "\"]");
    if (fields.Has("architectures") && fields.Value("architectures").dump() != only) {
      fields.Refuse("architectures",
                    Concat("is not supported for model_type ", type, " (supported: ", only, ")"));
    }
    return traits;
  }
  fields.Refuse("model_type", Concat("is not supported (supported: ", supported, ")"));
  return kFamilies[0];
}

void ReadStructure(const json& object, JsonFields& fields, ModelConfig& config) {
  config.fused_projections = config.family == Family::kPhi3;
  config.qk_norm = config.family == Family::kQwen3 || config.family == Family::kQwen3Moe;
  ReadBiases(fields, config);
  ReadWindows(object, fields, config);
  ReadExperts(fields, config);
}

}  // namespace sparsekv
