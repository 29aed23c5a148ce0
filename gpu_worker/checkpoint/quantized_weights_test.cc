// What config.json may say about codes, and tensors of codes that are not what it says: one line
// each. What good ones mean is tests/golden_test.cc's.
#include "gpu_worker/checkpoint/quantized_weights.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <map>
#include <set>

#include "gpu_worker/checkpoint/checkpoint_testing.h"
#include "gpu_worker/checkpoint/weights.h"

namespace sparsekv::testing {
namespace {

using nlohmann::json;

const json kGptq = {{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 8}};
const json kAwq = {{"quant_method", "awq"}, {"bits", 4}, {"group_size", 8}, {"version", "gemm"}};
const json kFp8 = {{"quant_method", "fp8"}, {"weight_block_size", {16, 16}}};
const json kInt8 = {
    {"quant_method", "compressed-tensors"},
    {"format", "int-quantized"},
    {"config_groups",
     {{"group_0",
       {{"targets", {"Linear"}},
        {"weights", {{"type", "int"}, {"num_bits", 8}, {"strategy", "channel"}}}}}}}};

// A tensor with its bytes; filled with small ones where none are given.
struct Tensor {
  std::string dtype;
  std::vector<uint64_t> shape;
  std::string bytes;
};
using Tensors = std::map<std::string, Tensor>;

uint64_t BytesOf(const Tensor& tensor) {
  uint64_t bytes = tensor.dtype.ends_with("32") ? 4 : tensor.dtype.ends_with("16") ? 2 : 1;
  for (uint64_t extent : tensor.shape) bytes *= extent;
  return bytes;
}

std::string Words(const std::vector<uint32_t>& words) {
  return {reinterpret_cast<const char*>(words.data()), words.size() * sizeof(uint32_t)};
}

std::string File(const Tensors& tensors) {
  json header = json::object();
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    const uint64_t begin = data.size();
    data += tensor.bytes.empty() ? std::string(BytesOf(tensor), '\x2a') : tensor.bytes;
    header[name] = {
        {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {begin, data.size()}}};
  }
  return SafetensorsBytes(header.dump(), data);
}

// TinyTensors with its matrices as codes of that method.
Tensors Coded(const json& config) {
  Tensors tensors;
  for (const TestTensor& plain : TinyTensors("F16")) {
    const auto end = plain.name.rfind(".weight");
    const std::string base = plain.name.substr(0, end);
    if (!base.ends_with("_proj")) {
      tensors[plain.name] = {plain.dtype, plain.shape, ""};
      continue;
    }
    const uint64_t out = plain.shape[0], in = plain.shape[1];
    if (config["quant_method"] == "gptq") {
      tensors[base + ".qweight"] = {"I32", {in / 8, out}, ""};
      tensors[base + ".qzeros"] = {"I32", {in / 8, out / 8}, ""};
      tensors[base + ".scales"] = {"F16", {in / 8, out}, ""};
      std::vector<uint32_t> index;
      for (uint32_t i = 0; i < in; ++i) index.push_back(i / 8);
      tensors[base + ".g_idx"] = {"I32", {in}, Words(index)};
    } else if (config["quant_method"] == "awq") {
      tensors[base + ".qweight"] = {"I32", {in, out / 8}, ""};
      tensors[base + ".qzeros"] = {"I32", {in / 8, out / 8}, ""};
      tensors[base + ".scales"] = {"F16", {in / 8, out}, ""};
    } else if (config["quant_method"] == "fp8") {
      tensors[base + ".weight"] = {"F8_E4M3", {out, in}, ""};
      tensors[base + ".weight_scale_inv"] = {"F32", {(out + 15) / 16, (in + 15) / 16}, ""};
    } else {
      tensors[base + ".weight"] = {"I8", {out, in}, ""};
      tensors[base + ".weight_scale"] = {"BF16", {out, 1}, ""};
    }
  }
  return tensors;
}

using Change = std::function<void(Tensors&)>;

// What loading says, without the directory; empty when it succeeds.
std::string Error(const json& quantization, const Change& change = {}) {
  TempDir dir;
  json config = TinyConfig();
  config["quantization_config"] = quantization;
  WriteFile(dir.File("config.json"), config.dump());
  Tensors tensors = Coded(quantization);
  if (change) change(tensors);
  WriteFile(dir.File("model.safetensors"), File(tensors));
  const auto checkpoint = LoadCheckpoint(dir.path());
  if (checkpoint.ok()) return "";
  std::string text(checkpoint.status().message());
  EXPECT_EQ(text.find('\n'), std::string::npos);
  EXPECT_TRUE(text.starts_with(dir.path())) << text;
  return text.substr(dir.path().size());
}

json With(json object, const json& changes) {
  object.merge_patch(changes);
  return object;
}

const std::string kQ = "model.layers.0.self_attn.q_proj";

TEST(QuantizedWeights, LoadsEveryMethod) {
  for (const json& config : {kGptq, kAwq, kFp8, kInt8}) EXPECT_EQ(Error(config), "") << config;
  // A matrix that is there as plain floats is one, whatever the config lists.
  const Change plain = [](Tensors& t) {
    for (const char* part : {".qweight", ".qzeros", ".scales"}) t.erase(kQ + part);
    t[kQ + ".weight"] = {"F16", {32, 24}, ""};
  };
  EXPECT_EQ(Error(kAwq, plain), "");
  EXPECT_EQ(Error(With(kAwq, {{"modules_to_not_convert", {"q_proj"}}}), plain), "");
}

TEST(QuantizedWeights, RefusesConfigsInOneLine) {
  const auto refuses = [](const json& config, const std::string& what) {
    EXPECT_EQ(Error(config), "/config.json: quantization_config." + what);
  };
  refuses(With(kGptq, {{"quant_method", "bitsandbytes"}}),
          "quant_method \"bitsandbytes\" is not supported (supported: gptq, awq, fp8, "
          "compressed-tensors)");
  refuses({{"bits", 4}}, "quant_method is missing");
  refuses(With(kGptq, {{"bits", 3}}), "bits 3 is not supported (supported: 4, 8)");
  refuses(With(kAwq, {{"bits", 8}}), "bits 8 is not supported (supported: 4)");
  refuses(With(kGptq, {{"group_size", 12}}),
          "group_size 12 is not supported (supported: -1, multiples of 8)");
  refuses(With(kGptq, {{"group_size", 0}}), "group_size 0 is not an integer in 1..1048576");
  refuses(With(kGptq, {{"group_size", nullptr}}), "group_size is missing");
  refuses(With(kGptq, {{"checkpoint_format", "marlin"}}),
          "checkpoint_format \"marlin\" is not supported (supported: gptq, gptq_v2)");
  refuses(With(kGptq, {{"dynamic", {{"-:k_proj", json::object()}}}}),
          "dynamic {\"-:k_proj\":{}} is not supported");
  refuses(With(kGptq, {{"desc_act", 1}}), "desc_act 1 is not true or false");
  refuses(With(kGptq, {{"hadamard", true}}), "hadamard true is not supported");
  refuses(With(kAwq, {{"version", "gemv"}}), "version \"gemv\" is not supported (supported: gemm)");
  refuses(With(kAwq, {{"zero_point", false}}),
          "zero_point false is not supported (supported: true)");
  refuses(With(kAwq, {{"modules_to_not_convert", "lm_head"}}),
          "modules_to_not_convert \"lm_head\" is not a list of module names");
  refuses(With(kFp8, {{"fmt", "e5m2"}}), "fmt \"e5m2\" is not supported (supported: \"e4m3\")");
  refuses(With(kFp8, {{"weight_block_size", {128}}}),
          "weight_block_size [128] is not supported (supported: null, [outputs, a multiple of 16 "
          "inputs])");
  refuses(With(kInt8, {{"format", "nvfp4-pack-quantized"}}),
          "format \"nvfp4-pack-quantized\" is not supported (supported: pack-quantized, "
          "int-quantized, naive-quantized, float-quantized)");
  const auto weights = [](const json& changes) {
    return With(kInt8, {{"config_groups", {{"group_0", {{"weights", changes}}}}}});
  };
  refuses(weights({{"symmetric", false}}),
          "config_groups.*.weights.symmetric false is not supported (supported: true)");
  refuses(weights({{"strategy", "group"}}),
          "config_groups.*.weights.strategy \"group\" is not supported with this format and type");
  refuses(weights({{"actorder", "group"}}),
          "config_groups.*.weights.actorder \"group\" is not supported (supported: null, "
          "\"weight\", \"static\")");
  EXPECT_NE(Error(With(kInt8, {{"config_groups", {{"group_1", json::object()}}}})), "");
  TempDir dir;
  WriteTinyCheckpoint(dir.path());
  json config = TinyConfig();
  config["quantization_config"] = json::array({1});
  WriteFile(dir.File("config.json"), config.dump());
  EXPECT_EQ(LoadCheckpoint(dir.path()).status().message(),
            dir.path() + "/config.json: quantization_config [1] is not an object");
}

const std::string kTensor = "/model.safetensors: tensor \"" + kQ;

void Refuses(const json& config, const Change& change, const std::string& what) {
  EXPECT_EQ(Error(config, change), what);
}

TEST(QuantizedWeights, RefusesIntegersInOneLine) {
  Refuses(
      kGptq,
      [](Tensors& t) {
        t[kQ + ".scales"].shape = {2, 32};
      },
      kTensor + ".scales\" has shape [2, 32], expected [3, 32]");
  Refuses(
      kGptq, [](Tensors& t) { t[kQ + ".qweight"].dtype = "F32"; },
      kTensor + ".qweight\" has dtype F32, expected I32");
  Refuses(
      kAwq,
      [](Tensors& t) {
        t[kQ + ".qweight"].shape = {3, 32};
      },
      kTensor + ".qweight\" has shape [3, 32], expected [24, 4]");
  Refuses(
      kGptq, [](Tensors& t) { t.erase(kQ + ".qzeros"); },
      ": tensor \"" + kQ + ".qzeros\" is missing");
  Refuses(
      kGptq, [](Tensors& t) { t.erase(kQ + ".qweight"); },
      ": tensor \"" + kQ + ".qweight\" is missing");
  const json ordered = With(kGptq, {{"desc_act", true}});
  Refuses(
      ordered, [](Tensors& t) { t.erase(kQ + ".g_idx"); },
      ": tensor \"" + kQ + ".g_idx\" is missing");
  for (uint32_t wrong : {3u, 0xFFFFFFFFu}) {
    Refuses(
        kGptq,
        [&](Tensors& t) { std::memcpy(t[kQ + ".g_idx"].bytes.data() + 20, &wrong, sizeof wrong); },
        kTensor + ".g_idx\" names group " + (wrong == 3 ? "3" : "-1") + " of input 5, there are 3");
  }
  Refuses(
      ordered, [](Tensors& t) { t[kQ + ".g_idx"].bytes.assign(24 * 4, '\0'); },
      kTensor + ".g_idx\" gives group 0 more than 8 inputs");
  Refuses(
      With(kGptq, {{"group_size", 16}}), {},
      "/config.json: quantization_config.group_size 16 does not divide the inputs of module \"" +
          kQ + "\" [32, 24]");
  Refuses(
      kGptq,
      [](Tensors& t) {
        t[kQ + ".weight"] = {"F16", {32, 24}, ""};
      },
      kTensor + ".weight\" is there twice: plain and as codes");
  Refuses(
      kGptq,
      [](Tensors& t) {
        t[kQ + ".bias"] = {"F16", {32}, ""};
      },
      kTensor + ".bias\" is not part of the model and not zero");
  EXPECT_EQ(Error(kGptq,
                  [](Tensors& t) {
                    t[kQ + ".bias"] = {"F16", {32}, std::string(64, 0)};
                  }),
            "");
  Refuses(
      kGptq, [](Tensors& t) { t[kQ + ".scales"].bytes = std::string(192, '\x7c'); },
      "/model.safetensors: module \"" + kQ + "\" holds a scale that is not finite");
}

TEST(QuantizedWeights, RefusesFloat8AndCompressedTensorsInOneLine) {
  Refuses(
      kFp8, [](Tensors& t) { t[kQ + ".weight"].bytes = std::string(32 * 24, '\xff'); },
      "/model.safetensors: module \"" + kQ + "\" holds a weight that is NaN");
  Refuses(
      kFp8, [](Tensors& t) { t[kQ + ".weight_scale_inv"].bytes = std::string(16, '\x77'); },
      kTensor +
          ".weight_scale_inv\" holds the scale 5.01922e+33, not supported (supported: up "
          "to 1e+30)");
  Refuses(
      kFp8, [](Tensors& t) { t.erase(kQ + ".weight_scale_inv"); },
      ": tensor \"" + kQ + ".weight_scale\" is missing");
  Refuses(
      kInt8,
      [](Tensors& t) {
        t[kQ + ".weight_scale"].shape = {16, 2};
      },
      kTensor + ".weight_scale\" has shape [16, 2], expected [32, 1]");
  Refuses(
      kInt8,
      [](Tensors& t) {
        t[kQ + ".weight_zero_point"] = {"I8", {32, 1}, ""};
      },
      kTensor + ".weight_zero_point\" is not supported");
  // Codes of a config that says nothing of any.
  EXPECT_NE(Error(kFp8, [](Tensors& t) { t[kQ + ".weight"].dtype = "I8"; }), "");
}

TEST(QuantizedWeights, TheFingerprintKnowsTheCodesAndWhatTheyMean) {
  std::set<uint64_t> seen;
  const auto fingerprint = [&](json quantization, const Change& change = {}) {
    TempDir dir;
    json config = TinyConfig();
    config["quantization_config"] = std::move(quantization);
    WriteFile(dir.File("config.json"), config.dump());
    Tensors tensors = Coded(config["quantization_config"]);
    if (change) change(tensors);
    WriteFile(dir.File("model.safetensors"), File(tensors));
    uint64_t found[2];
    for (Weights::Use use : {Weights::Use::kCompute, Weights::Use::kDescribe}) {
      const auto checkpoint = LoadCheckpoint(dir.path(), use);
      EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
      found[use == Weights::Use::kDescribe] = checkpoint->weights->fingerprint();
    }
    EXPECT_EQ(found[0], found[1]);
    return found[0];
  };
  seen.insert(fingerprint(kGptq));
  seen.insert(fingerprint(With(kGptq, {{"checkpoint_format", "gptq_v2"}})));
  for (const char* part : {".qweight", ".qzeros", ".scales"}) {
    seen.insert(fingerprint(kGptq, [&](Tensors& t) {
      t[kQ + part].bytes = std::string(BytesOf(t[kQ + part]), '\x2b');
    }));
  }
  seen.insert(fingerprint(kAwq));
  EXPECT_EQ(seen.size(), 6u);
}

}  // namespace
}  // namespace sparsekv::testing
