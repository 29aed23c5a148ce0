#include "gpu_worker/random_checkpoint.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "base/check.h"

namespace sparsekv {

namespace {

// float32 -> the stored type, by truncation: the weights are random anyway. float16 has a narrower
// exponent, and the values written here (below 2 in size) fit it.
void Append(std::string& out, float value, DType dtype) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (dtype == DType::kF32) {
    out.append(reinterpret_cast<const char*>(&bits), 4);
    return;
  }
  uint16_t half = static_cast<uint16_t>(bits >> 16);
  if (dtype == DType::kF16) {
    const int exponent = static_cast<int>((bits >> 23) & 0xff) - 127 + 15;
    half = static_cast<uint16_t>((bits >> 16) & 0x8000);
    if (exponent > 0) {
      half = static_cast<uint16_t>(half | (exponent << 10) | ((bits >> 13) & 0x3ff));
    }
  }
  out.append(reinterpret_cast<const char*>(&half), 2);
}

class Writer {
 public:
  Writer(DType dtype, uint64_t seed) : dtype_(dtype), random_(seed) {}

  void Add(const std::string& name, std::vector<uint32_t> shape, float mean, float deviation) {
    std::normal_distribution<float> normal(mean, deviation);
    const size_t begin = data_.size();
    size_t count = 1;
    for (uint32_t n : shape) count *= n;
    for (size_t i = 0; i < count; ++i)
      Append(data_, std::clamp(normal(random_), -1.9f, 1.9f), dtype_);
    const char* type = dtype_ == DType::kF32 ? "F32" : dtype_ == DType::kF16 ? "F16" : "BF16";
    header_[name] = {{"dtype", type}, {"shape", shape}, {"data_offsets", {begin, data_.size()}}};
  }

  // A matrix [outputs, inputs] of 4-bit codes.
  void AddGptq(const std::string& module, uint32_t outputs, uint32_t inputs, float deviation) {
    const uint32_t groups = inputs / kGroup;
    std::vector<uint32_t> words(size_t{inputs} / 8 * outputs);
    for (uint32_t& word : words) word = static_cast<uint32_t>(random_());
    AddWords(module + ".qweight", {inputs / 8, outputs}, words);
    words.assign(size_t{groups} * outputs / 8, 0);
    for (uint32_t& word : words) word = 0x66666666u + (random_() & 0x11111111u);  // 7 or 8
    AddWords(module + ".qzeros", {groups, outputs / 8}, words);
    words.resize(inputs);
    for (uint32_t i = 0; i < inputs; ++i) words[i] = i / kGroup;
    std::ranges::shuffle(words, random_);
    AddWords(module + ".g_idx", {inputs}, words);
    Add(module + ".scales", {groups, outputs}, deviation / 4.6f, deviation / 20);
  }

  void Write(const std::string& path) {
    std::string header = header_.dump();
    header.append(7 - (header.size() + 7) % 8, ' ');
    const uint64_t length = header.size();
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(&length), 8);
    file << header << data_;
    CHECK(file.good());
  }

  static constexpr uint32_t kGroup = 16;

 private:
  void AddWords(const std::string& name, std::vector<uint32_t> shape,
                const std::vector<uint32_t>& words) {
    const size_t begin = data_.size();
    data_.append(reinterpret_cast<const char*>(words.data()), words.size() * sizeof(uint32_t));
    header_[name] = {{"dtype", "I32"}, {"shape", shape}, {"data_offsets", {begin, data_.size()}}};
  }

  DType dtype_;
  std::mt19937_64 random_;
  nlohmann::ordered_json header_;
  std::string data_;
};

void WriteConfig(const RandomCheckpoint::Shape& s, const std::string& dir) {
  nlohmann::json config = {{"architectures", {"LlamaForCausalLM"}},
                           {"model_type", "llama"},
                           {"hidden_size", s.hidden},
                           {"intermediate_size", s.intermediate},
                           {"num_hidden_layers", s.layers},
                           {"num_attention_heads", s.kv_heads * s.group},
                           {"num_key_value_heads", s.kv_heads},
                           {"head_dim", s.head_dim},
                           {"vocab_size", s.vocab},
                           {"max_position_embeddings", s.context},
                           {"rms_norm_eps", 1e-5},
                           {"rope_theta", 10000.0},
                           {"hidden_act", "silu"},
                           {"tie_word_embeddings", s.tied},
                           {"torch_dtype", std::string(Name(s.dtype))},
                           {"bos_token_id", 1},
                           {"eos_token_id", 2}};
  if (s.gptq) {
    config["quantization_config"] = {{"quant_method", "gptq"},
                                     {"bits", 4},
                                     {"group_size", Writer::kGroup},
                                     {"desc_act", true},
                                     {"sym", false}};
  }
  std::ofstream(dir + "/config.json") << config.dump(1);
}

void WriteWeights(const RandomCheckpoint::Shape& s, const std::string& dir, uint64_t seed) {
  Writer writer(s.dtype, seed);
  const uint32_t q = s.kv_heads * s.group * s.head_dim, kv = s.kv_heads * s.head_dim;
  const float in = 1.0f / std::sqrt(static_cast<float>(s.hidden));
  const auto matrix = [&](const std::string& name, uint32_t outputs, uint32_t inputs,
                          float deviation) {
    if (s.gptq) return writer.AddGptq(name, outputs, inputs, deviation);
    writer.Add(name + ".weight", {outputs, inputs}, 0, deviation);
  };
  writer.Add("model.embed_tokens.weight", {s.vocab, s.hidden}, 0, 0.5f);
  for (uint32_t layer = 0; layer < s.layers; ++layer) {
    const std::string p = "model.layers." + std::to_string(layer) + ".";
    writer.Add(p + "input_layernorm.weight", {s.hidden}, 1, 0.1f);
    matrix(p + "self_attn.q_proj", q, s.hidden, 1.5f * in);
    matrix(p + "self_attn.k_proj", kv, s.hidden, 1.5f * in);
    matrix(p + "self_attn.v_proj", kv, s.hidden, in);
    matrix(p + "self_attn.o_proj", s.hidden, q, in);
    writer.Add(p + "post_attention_layernorm.weight", {s.hidden}, 1, 0.1f);
    matrix(p + "mlp.gate_proj", s.intermediate, s.hidden, in);
    matrix(p + "mlp.up_proj", s.intermediate, s.hidden, in);
    matrix(p + "mlp.down_proj", s.hidden, s.intermediate, in);
  }
  writer.Add("model.norm.weight", {s.hidden}, 1, 0.1f);
  if (!s.tied) writer.Add("lm_head.weight", {s.vocab, s.hidden}, 0, 4 * in);
  writer.Write(dir + "/model.safetensors");
}

ChannelConfig RandomChannels(const RandomCheckpoint::Shape& s, uint64_t seed) {
  ChannelConfig channels;
  channels.layers = s.layers;
  channels.kv_heads = s.kv_heads;
  channels.head_dim = s.head_dim;
  channels.pooling = static_cast<Pooling>(seed % 3);
  channels.criterion = "random";
  channels.label_format = s.label_format;
  std::mt19937_64 random(seed + 1);
  std::vector<uint16_t> order(s.head_dim);
  std::iota(order.begin(), order.end(), uint16_t{0});
  for (uint32_t i = 0; i < s.layers * s.kv_heads; ++i) {
    std::ranges::shuffle(order, random);
    channels.order.insert(channels.order.end(), order.begin(), order.end());
  }
  channels.UseChannels(s.channels);
  return channels;
}

}  // namespace

RandomCheckpoint::RandomCheckpoint(const Shape& shape, uint64_t seed) {
  std::string form = (std::filesystem::temp_directory_path() / "sparsekv-random-XXXXXX").string();
  CHECK(mkdtemp(form.data()) != nullptr);
  dir_ = form;
  WriteConfig(shape, dir_);
  WriteWeights(shape, dir_, seed);
  auto files = ModelFiles::Load(dir_, "none");
  if (!files.ok()) internal::CheckFailed(__FILE__, __LINE__, files.status().ToString());
  if (shape.channels > 0) {
    const std::string path = dir_ + "/channels.json";
    const absl::Status saved =
        RandomChannels(shape, seed).Save(path, files->weights->fingerprint());
    if (!saved.ok()) internal::CheckFailed(__FILE__, __LINE__, saved.ToString());
    files = ModelFiles::Load(dir_, "");
    if (!files.ok()) internal::CheckFailed(__FILE__, __LINE__, files.status().ToString());
  }
  files_ = *std::move(files);
}

RandomCheckpoint::~RandomCheckpoint() {
  std::error_code ignored;
  std::filesystem::remove_all(dir_, ignored);
}

}  // namespace sparsekv
