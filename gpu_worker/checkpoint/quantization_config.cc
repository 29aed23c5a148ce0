#include "gpu_worker/checkpoint/quantization_config.h"

#include <set>
#include <string_view>

#include "base/concat.h"
#include "gpu_worker/checkpoint/json_file.h"

namespace sparsekv {
namespace {

using nlohmann::json;
using Method = QuantizationConfig::Method;
using Names = std::set<std::string_view>;

constexpr const char* kField = "quantization_config";
constexpr uint32_t kMaxGroup = 1 << 20;

// Fields that say how the checkpoint was made or may be run elsewhere, and nothing about what the
// stored bytes mean.
const Names kSilent = {"quant_method",
                       "dataset",
                       "tokenizer",
                       "damp_percent",
                       "damp_auto_increment",
                       "static_groups",
                       "true_sequential",
                       "mse",
                       "sym",
                       "act_group_aware",
                       "hyb_act",
                       "meta",
                       "backend",
                       "model_seqlen",
                       "block_name_to_quantize",
                       "module_name_preceding_first_block",
                       "modules_in_block_to_quantize",
                       "batch_size",
                       "pad_token_id",
                       "max_input_length",
                       "cache_block_outputs",
                       "model_name_or_path",
                       "model_file_base_name",
                       "use_cuda_fp16",
                       "use_exllama",
                       "disable_exllama",
                       "exllama_config",
                       "lm_head",
                       "do_fuse",
                       "fuse_max_seq_len",
                       "modules_to_fuse",
                       "dequantize",
                       "offload_to_disk",
                       "version",
                       "quantization_status",
                       "global_compression_ratio"};

void RefuseOthers(JsonFields& fields, const json& object, const Names& known) {
  for (const auto& [key, value] : object.items()) {
    if (value.is_null() || known.contains(key) || kSilent.contains(key)) continue;
    fields.Refuse(key.c_str(), "is not supported");
  }
}

// A field that must have this value, or be absent.
void Only(JsonFields& fields, const char* name, const json& value) {
  if (fields.Has(name) && fields.Value(name) != value) {
    fields.Refuse(name, Concat("is not supported (supported: ", value.dump(), ")"));
  }
}

// A field that must be absent or hold nothing.
void OnlyEmpty(JsonFields& fields, const char* name) {
  if (fields.Has(name) && !fields.Value(name).empty()) fields.Refuse(name, "is not supported");
}

void CheckNames(JsonFields& fields, const char* name) {
  if (!fields.Has(name)) return;
  const json& list = fields.Value(name);
  bool good = list.is_array();
  for (const json& entry : list) good = good && entry.is_string();
  if (!good) fields.Refuse(name, "is not a list of module names");
}

uint32_t Bits(JsonFields& fields, const char* name, bool eight) {
  const uint32_t bits = fields.Unsigned(name, 0, 64);
  if (bits == 4 || (bits == 8 && eight)) return bits;
  fields.Refuse(name,
                eight ? "is not supported (supported: 4, 8)" : "is not supported (supported: 4)");
  return 4;
}

// 0 for -1: all inputs.
uint32_t Group(JsonFields& fields, const char* name) {
  if (!fields.Has(name)) {
    fields.Refuse(name, "is missing");
    return 0;
  }
  if (fields.Value(name) == -1) return 0;
  const uint32_t group = fields.Unsigned(name, 1, kMaxGroup);
  if (group % 8 != 0) fields.Refuse(name, "is not supported (supported: -1, multiples of 8)");
  return group;
}

std::string Lower(std::string text) {
  for (char& c : text) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return text;
}

void ReadGptq(JsonFields& fields, const json& object, QuantizationConfig& config) {
  config.bits = Bits(fields, "bits", /*eight=*/true);
  config.group = Group(fields, "group_size");
  config.ordered = fields.BoolOr("desc_act", false);
  const char* format = fields.Has("checkpoint_format") ? "checkpoint_format" : "format";
  const std::string name = Lower(fields.StringOr(format, "gptq"));
  if (name != "gptq" && name != "gptq_v2") {
    fields.Refuse(format, "is not supported (supported: gptq, gptq_v2)");
  }
  config.zeros_less_one = name == "gptq";
  Only(fields, "is_marlin_format", false);
  Only(fields, "pack_dtype", "int32");
  OnlyEmpty(fields, "dynamic");
  CheckNames(fields, "modules_to_not_convert");
  RefuseOthers(fields, object,
               {"bits", "group_size", "desc_act", "checkpoint_format", "format", "is_marlin_format",
                "pack_dtype", "dynamic", "modules_to_not_convert"});
}

void ReadAwq(JsonFields& fields, const json& object, QuantizationConfig& config) {
  config.bits = Bits(fields, fields.Has("bits") ? "bits" : "w_bit", /*eight=*/false);
  config.group = Group(fields, fields.Has("group_size") ? "group_size" : "q_group_size");
  Only(fields, "zero_point", true);
  Only(fields, "desc_act", false);
  for (const char* name : {"version", "format"}) {
    if (Lower(fields.StringOr(name, "gemm")) != "gemm") {
      fields.Refuse(name, "is not supported (supported: gemm)");
    }
  }
  if (fields.StringOr("backend", "") == "llm-awq") {
    fields.Refuse("backend", "is not supported (supported: autoawq)");
  }
  CheckNames(fields, "modules_to_not_convert");
  RefuseOthers(fields, object,
               {"bits", "w_bit", "group_size", "q_group_size", "zero_point", "desc_act", "version",
                "format", "modules_to_not_convert", "checkpoint_format"});
}

void ReadBlock(JsonFields& fields, const char* name, QuantizationConfig& config) {
  if (!fields.Has(name)) return;
  const json& block = fields.Value(name);
  const auto extent = [&](size_t i, uint32_t unit) {
    return block.is_array() && block.size() == 2 && block[i].is_number_unsigned() &&
                   block[i] >= 1 && block[i] <= kMaxGroup && block[i].get<uint32_t>() % unit == 0
               ? block[i].get<uint32_t>()
               : 0;
  };
  config.block_rows = extent(0, 1);
  config.block_cols = extent(1, 16);
  if (config.block_rows == 0 || config.block_cols == 0) {
    fields.Refuse(name, "is not supported (supported: null, [outputs, a multiple of 16 inputs])");
  }
}

void ReadFp8(JsonFields& fields, const json& object, QuantizationConfig& config) {
  Only(fields, "fmt", "e4m3");
  Only(fields, "scale_fmt", "float");
  const std::string scheme = fields.StringOr("activation_scheme", "dynamic");
  if (scheme != "dynamic" && scheme != "static") {
    fields.Refuse("activation_scheme", "is not supported (supported: dynamic, static)");
  }
  ReadBlock(fields, "weight_block_size", config);
  OnlyEmpty(fields, "modules_to_convert");
  OnlyEmpty(fields, "kv_cache_scheme");
  CheckNames(fields, "modules_to_not_convert");
  CheckNames(fields, "ignored_layers");
  RefuseOthers(fields, object,
               {"fmt", "scale_fmt", "activation_scheme", "weight_block_size", "modules_to_convert",
                "kv_cache_scheme", "modules_to_not_convert", "ignored_layers"});
}

// config_groups.group_0.weights
absl::Status ReadCompressedWeights(const json& object, const std::string& file,
                                   QuantizationConfig& config) {
  JsonFields fields(object, file, Concat(kField, ".config_groups.*.weights."));
  const std::string type = fields.String("type");
  const bool floats = type == "float";
  if (!floats && type != "int") fields.Refuse("type", "is not supported (supported: int, float)");
  config.bits = Bits(fields, "num_bits", /*eight=*/true);
  if (floats && config.bits != 8) fields.Refuse("num_bits", "is not supported (supported: 8)");
  if (floats) config.bits = 0;
  const std::string strategy = fields.StringOr("strategy", "tensor");
  if (strategy == "group" && config.packed) {
    config.group = Group(fields, "group_size");
  } else if (strategy == "block" && floats) {
    ReadBlock(fields, "block_structure", config);
    if (config.block_rows == 0) fields.Refuse("block_structure", "is missing");
  } else if (strategy != "channel" && strategy != "tensor") {
    fields.Refuse("strategy", "is not supported with this format and type");
  }
  Only(fields, "symmetric", true);
  Only(fields, "dynamic", false);
  if (fields.Has("actorder") && fields.Value("actorder") != "weight" &&
      fields.Value("actorder") != "static" && fields.Value("actorder") != false) {
    fields.Refuse("actorder", "is not supported (supported: null, \"weight\", \"static\")");
  }
  RefuseOthers(fields, object,
               {"type", "num_bits", "strategy", "group_size", "block_structure", "symmetric",
                "dynamic", "actorder", "observer", "observer_kwargs", "scale_dtype", "zp_dtype"});
  return fields.status();
}

absl::Status ReadCompressed(JsonFields& fields, const json& object, QuantizationConfig& config) {
  const std::string format = fields.String("format");
  config.packed = format == "pack-quantized";
  if (!config.packed && format != "int-quantized" && format != "float-quantized" &&
      format != "naive-quantized") {
    fields.Refuse("format",
                  "is not supported (supported: pack-quantized, int-quantized, naive-quantized, "
                  "float-quantized)");
  }
  for (const char* name : {"kv_cache_scheme", "transform_config"}) OnlyEmpty(fields, name);
  if (fields.Has("sparsity_config") && !fields.Value("sparsity_config").empty() &&
      fields.Value("sparsity_config") != json({{"format", "dense"}})) {
    fields.Refuse("sparsity_config", "is not supported");
  }
  CheckNames(fields, "ignore");
  RefuseOthers(fields, object,
               {"format", "kv_cache_scheme", "transform_config", "sparsity_config", "ignore",
                "config_groups"});
  if (!fields.status().ok()) return fields.status();
  const json none = json::object();
  const json& groups = fields.Has("config_groups") ? fields.Value("config_groups") : none;
  if (!groups.is_object() || groups.size() != 1 || !groups.begin()->is_object() ||
      groups.begin()->value("targets", json()) != json::array({"Linear"}) ||
      !groups.begin()->value("weights", json()).is_object()) {
    fields.Refuse("config_groups",
                  "is not supported (supported: one group of targets [\"Linear\"] with weights)");
    return fields.status();
  }
  const json& group = *groups.begin();
  if (group.value("format", json(format)) != format && !group.value("format", json()).is_null()) {
    fields.Refuse("config_groups", "has a group of another format");
    return fields.status();
  }
  return ReadCompressedWeights(group["weights"], fields.file(), config);
}

}  // namespace

absl::StatusOr<QuantizationConfig> QuantizationConfig::Read(const json& object,
                                                            const std::string& file) {
  JsonFields fields(object, file, Concat(kField, "."));
  QuantizationConfig config;
  config.file = file;
  config.name = fields.String("quant_method");
  if (!fields.status().ok()) return fields.status();
  if (config.name == "gptq") {
    config.method = Method::kGptq;
    ReadGptq(fields, object, config);
  } else if (config.name == "awq") {
    config.method = Method::kAwq;
    ReadAwq(fields, object, config);
  } else if (config.name == "fp8") {
    config.method = Method::kFp8;
    ReadFp8(fields, object, config);
  } else if (config.name == "compressed-tensors") {
    config.method = Method::kCompressed;
    if (absl::Status read = ReadCompressed(fields, object, config); !read.ok()) return read;
  } else {
    fields.Refuse("quant_method",
                  "is not supported (supported: gptq, awq, fp8, compressed-tensors)");
  }
  if (!fields.status().ok()) return fields.status();
  return config;
}

}  // namespace sparsekv
