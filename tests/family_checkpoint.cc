#include "family_checkpoint.h"

#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <random>

#include "base/check.h"
#include "kernels/half.h"

namespace sparsekv::testing {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::string Folder(const std::string& family) {
  return std::string(SPARSEKV_SOURCE_DIR) + "/tests/golden/families/" + family;
}

json ReadJson(const std::string& path) { return json::parse(std::ifstream(path)); }

// splitmix64 of the name's FNV-1a hash and the index: make_family_goldens.py, hashes.
uint64_t Hash(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

uint64_t Seed(const std::string& name) {
  uint64_t seed = 0xCBF29CE484222325u;
  for (char byte : name) seed = (seed ^ static_cast<uint8_t>(byte)) * 0x100000001B3u;
  return seed;
}

// make_family_goldens.py, values.
void AppendTensor(const std::string& name, const std::vector<uint64_t>& shape, DType dtype,
                  std::string& data) {
  const uint64_t seed = Seed(name), count = std::accumulate(shape.begin(), shape.end(), uint64_t{1},
                                                            std::multiplies<>());
  const auto has = [&](const char* part) { return name.find(part) != std::string::npos; };
  const double gain = has("embed") || has("lm_head") ? 3.0 : has(".gate.weight") ? 9.0 : 1.8;
  const double scale = gain / std::sqrt(static_cast<double>(shape.back()));
  for (uint64_t i = 0; i < count; ++i) {
    const double uniform = static_cast<double>(Hash(seed, i) >> 40) / 0x1p23 - 1;
    const double value =
        shape.size() == 1 ? 0.4 * uniform + (has("norm") ? 1 : 0) : uniform * scale;
    char bytes[4];
    StoreValue(bytes, 0, dtype, static_cast<float>(value));
    data.append(bytes, SizeOf(dtype));
  }
}

void WriteWeights(const std::string& path, const json& tensors, DType dtype) {
  json header;
  std::string data;
  for (const json& tensor : tensors) {
    const auto shape = tensor[1].get<std::vector<uint64_t>>();
    const size_t begin = data.size();
    AppendTensor(tensor[0], shape, dtype, data);
    header[tensor[0].get<std::string>()] = {{"dtype", dtype == DType::kF32 ? "F32" : "BF16"},
                                            {"shape", shape},
                                            {"data_offsets", {begin, data.size()}}};
  }
  std::string text = header.dump();
  text.append(7 - (text.size() + 7) % 8, ' ');
  const uint64_t length = text.size();
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(&length), 8);
  file << text << data;
  CHECK(file.good());
}

ModelFiles LoadOrDie(const std::string& dir, const std::string& channels) {
  auto files = ModelFiles::Load(dir, channels);
  if (!files.ok()) internal::CheckFailed(__FILE__, __LINE__, files.status().ToString());
  return *std::move(files);
}

}  // namespace

std::vector<std::string> GoldenFamilies() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(Folder(""))) {
    names.push_back(entry.path().filename().string());
  }
  std::ranges::sort(names);
  return names;
}

FamilyGolden ReadFamilyGolden(const std::string& family) {
  const json golden = ReadJson(Folder(family) + "/golden.json");
  FamilyGolden result = {.ids = golden["token_ids"].get<std::vector<uint32_t>>(),
                         .positions = golden["positions"].get<std::vector<uint32_t>>(),
                         .bfloat16_error = golden["bfloat16_error"].get<double>()};
  std::ifstream file(Folder(family) + "/logits.npy", std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), {});
  const size_t header = static_cast<uint8_t>(bytes[8]) + 256 * static_cast<uint8_t>(bytes[9]);
  CHECK(bytes.find("'<f4'") != std::string::npos);
  const size_t half = (bytes.size() - 10 - header) / 8;
  for (size_t i : {0u, 1u}) {
    result.logits[i].resize(half);
    std::memcpy(result.logits[i].data(), bytes.data() + 10 + header + i * half * 4, half * 4);
  }
  return result;
}

FamilyCheckpoint::FamilyCheckpoint(const std::string& family, DType dtype, const json& changes) {
  std::string form = (fs::temp_directory_path() / "sparsekv-family-XXXXXX").string();
  CHECK(mkdtemp(form.data()) != nullptr);
  dir_ = form;
  json config = ReadJson(Folder(family) + "/config.json");
  config.merge_patch(changes);
  std::ofstream(dir_ + "/config.json") << config.dump(1);
  const json golden = ReadJson(Folder(family) + "/golden.json");
  WriteWeights(dir_ + "/model.safetensors", golden["tensors"], dtype);
}

FamilyCheckpoint::~FamilyCheckpoint() {
  std::error_code ignored;
  fs::remove_all(dir_, ignored);
}

ModelFiles FamilyCheckpoint::Load(uint32_t channels) const {
  ModelFiles files = LoadOrDie(dir_, "none");
  if (channels == 0) return files;
  const ModelConfig& config = files.config;
  ChannelConfig random;
  random.layers = config.layers;
  random.kv_heads = config.kv_heads;
  random.head_dim = config.head_dim;
  random.criterion = "random";
  std::mt19937_64 engine(7);
  std::vector<uint16_t> order(config.head_dim);
  std::iota(order.begin(), order.end(), uint16_t{0});
  for (uint32_t i = 0; i < config.layers * config.kv_heads; ++i) {
    std::ranges::shuffle(order, engine);
    random.order.insert(random.order.end(), order.begin(), order.end());
  }
  random.UseChannels(channels);
  const std::string path = dir_ + "/channels.json";
  CHECK(random.Save(path, files.weights->fingerprint()).ok());
  return LoadOrDie(dir_, path);
}

}  // namespace sparsekv::testing
