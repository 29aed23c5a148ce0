#pragma once

#include <stdlib.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

// What tests of checkpoint files share: a directory that goes away, and files written byte by byte,
// so that they can be wrong in any way.
namespace sparsekv::testing {

class TempDir {
 public:
  TempDir() {
    std::string name = (std::filesystem::temp_directory_path() / "sparsekv-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) std::abort();
    path_ = name;
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::string& path() const { return path_; }
  std::string File(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline void WriteFile(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

struct TestTensor {
  std::string name;
  std::string dtype;  // "F32", "F16", "BF16", ...
  std::vector<uint64_t> shape;
};

inline uint64_t TestTensorBytes(const TestTensor& tensor) {
  uint64_t bytes = tensor.dtype == "F32" ? 4 : 2;
  for (uint64_t extent : tensor.shape) bytes *= extent;
  return bytes;
}

// A safetensors file of this header text and data, padded to a multiple of 8 as writers do.
inline std::string SafetensorsBytes(std::string header, const std::string& data, bool pad = true) {
  while (pad && header.size() % 8 != 0) header += ' ';
  const uint64_t size = header.size();
  return std::string(reinterpret_cast<const char*>(&size), 8) + header + data;
}

// The file with all these tensors, filled with bytes that depend on place and tensor.
inline std::string SafetensorsBytes(const std::vector<TestTensor>& tensors) {
  nlohmann::json header = nlohmann::json::object();
  std::string data;
  for (const TestTensor& tensor : tensors) {
    const uint64_t begin = data.size();
    for (uint64_t i = 0; i < TestTensorBytes(tensor); ++i) {
      data += static_cast<char>((i * 7 + begin + tensor.name.size()) % 61);
    }
    header[tensor.name] = {
        {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {begin, data.size()}}};
  }
  return SafetensorsBytes(header.dump(), data);
}

// config.json of a tiny Llama: 2 layers, 4 query heads and 2 KV heads of 8, hidden 24.
inline nlohmann::json TinyConfig() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"vocab_size", 40},
          {"hidden_size", 24},
          {"intermediate_size", 16},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"head_dim", 8},
          {"max_position_embeddings", 128},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 10000.0},
          {"rope_scaling", nullptr},
          {"hidden_act", "silu"},
          {"attention_bias", false},
          {"mlp_bias", false},
          {"tie_word_embeddings", false},
          {"bos_token_id", 1},
          {"eos_token_id", 2},
          {"torch_dtype", "float32"}};
}

// The tensors that TinyConfig means, matrices in `dtype` and norms in float32.
inline std::vector<TestTensor> TinyTensors(const std::string& dtype) {
  std::vector<TestTensor> tensors = {{"model.embed_tokens.weight", dtype, {40, 24}}};
  for (int i = 0; i < 2; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    const auto add = [&](const char* name, std::string type, std::vector<uint64_t> shape) {
      tensors.push_back({layer + name + ".weight", std::move(type), std::move(shape)});
    };
    add("input_layernorm", "F32", {24});
    add("self_attn.q_proj", dtype, {32, 24});
    add("self_attn.k_proj", dtype, {16, 24});
    add("self_attn.v_proj", dtype, {16, 24});
    add("self_attn.o_proj", dtype, {24, 32});
    add("post_attention_layernorm", "F32", {24});
    add("mlp.gate_proj", dtype, {16, 24});
    add("mlp.up_proj", dtype, {16, 24});
    add("mlp.down_proj", dtype, {24, 16});
  }
  tensors.push_back({"model.norm.weight", "F32", {24}});
  tensors.push_back({"lm_head.weight", dtype, {40, 24}});
  return tensors;
}

// A whole tiny checkpoint in `dir`.
inline void WriteTinyCheckpoint(const std::string& dir, const std::string& dtype = "F32") {
  WriteFile(dir + "/config.json", TinyConfig().dump());
  WriteFile(dir + "/model.safetensors", SafetensorsBytes(TinyTensors(dtype)));
}

}  // namespace sparsekv::testing
