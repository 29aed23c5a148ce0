#include "gpu_worker/checkpoint/weights.h"

#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <map>
#include <set>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/concat.h"
#include "base/one_line.h"
#include "gpu_worker/checkpoint/json_file.h"

namespace sparsekv {
namespace {

constexpr size_t kMaxIndexBytes = 64 << 20;
constexpr size_t kMaxShards = 4096;
constexpr size_t kMostNamed = 500;     // of missing tensors
constexpr size_t kSampleBytes = 4096;  // of a tensor, at each end, in the fingerprint

using Wanted = WantedTensor;

// Every tensor in one fixed order, which the fingerprint follows.
std::vector<Wanted> WantedTensors(const ModelConfig& c, Weights& weights) {
  std::vector<Wanted> wanted;
  wanted.push_back({"model.embed_tokens.weight", c.vocab_size, c.hidden_size, &weights.embed});
  for (uint32_t i = 0; i < c.layers; ++i) {
    WantLayer(c, i, weights.layers[i], wanted);
  }
  wanted.push_back({"model.norm.weight", 0, c.hidden_size, &weights.norm});
  if (!c.tie_embeddings) {
    wanted.push_back({"lm_head.weight", c.vocab_size, c.hidden_size, &weights.lm_head});
  }
  return wanted;
}

// The open files of a checkpoint and which of them holds a tensor.
struct TensorFiles {
  std::vector<std::unique_ptr<SafetensorsFile>> files;
  std::map<std::string, const SafetensorsFile*> holder;  // by tensor name
};

absl::StatusOr<TensorFiles> OpenSingle(const std::string& path) {
  TensorFiles result;
  absl::StatusOr<std::unique_ptr<SafetensorsFile>> file = SafetensorsFile::Open(path);
  if (!file.ok()) return file.status();
  for (const auto& [name, entry] : (*file)->entries()) result.holder[name] = file->get();
  result.files.push_back(*std::move(file));
  return result;
}

absl::StatusOr<TensorFiles> OpenShards(const std::string& model_dir, const std::string& index) {
  absl::StatusOr<nlohmann::json> object = ReadJsonObject(index, kMaxIndexBytes);
  if (!object.ok()) return object.status();
  JsonFields fields(*object, index);
  if (!fields.Has("weight_map") || !fields.Value("weight_map").is_object()) {
    fields.Refuse("weight_map", "is not an object of tensor names and shards");
    return fields.status();
  }
  TensorFiles result;
  std::map<std::string, const SafetensorsFile*> shards;
  for (const auto& [tensor, value] : fields.Value("weight_map").items()) {
    // Only names of files beside the index: a checkpoint may not point elsewhere.
    const std::string shard = value.is_string() ? value.get<std::string>() : "";
    if (shard.empty() || shard.find("/") != std::string::npos ||
        shard.find("..") != std::string::npos || OneLine(shard) != shard) {
      fields.RefuseFile(Concat("weight_map.", tensor, " is not a file name"));
      return fields.status();
    }
    auto found = shards.find(shard);
    if (found == shards.end()) {
      if (shards.size() == kMaxShards) {
        fields.RefuseFile(Concat("more than ", kMaxShards, " shards"));
        return fields.status();
      }
      auto file = SafetensorsFile::Open(Concat(model_dir, "/", shard));
      if (!file.ok()) {
        return absl::Status(file.status().code(), Concat(std::string(file.status().message()),
                                                         " (a shard that ", index, " names)"));
      }
      found = shards.emplace(shard, file->get()).first;
      result.files.push_back(*std::move(file));
    }
    if (found->second->Find(tensor) == nullptr) {
      return absl::InvalidArgumentError(Concat(found->second->path(), ": tensor \"",
                                               OneLine(tensor), "\" is not in the shard that ",
                                               index, " names for it"));
    }
    result.holder[tensor] = found->second;
  }
  return result;
}

absl::StatusOr<TensorFiles> OpenFiles(const std::string& model_dir) {
  const std::string index = model_dir + "/model.safetensors.index.json";
  const std::string single = model_dir + "/model.safetensors";
  struct stat info;
  // The single file wins where both lie, as it does for other loaders.
  if (stat(single.c_str(), &info) != 0 && stat(index.c_str(), &info) == 0) {
    return OpenShards(model_dir, index);
  }
  return OpenSingle(single);
}

std::string ShapeText(const std::vector<uint64_t>& shape) {
  return Concat("[", absl::StrJoin(shape, ", "), "]");
}

absl::Status Bind(const SafetensorsFile& file, const Wanted& wanted) {
  const SafetensorsEntry& entry = *file.Find(wanted.name);
  std::vector<uint64_t> expected;
  if (wanted.rows > 0) expected.push_back(wanted.rows);
  expected.push_back(wanted.cols);
  const std::string where = Concat(file.path(), ": tensor \"", wanted.name, "\" ");
  if (!entry.dtype) {
    return absl::InvalidArgumentError(Concat(where, "has dtype ", entry.dtype_name,
                                             ", not supported (supported: F32, F16, BF16)"));
  }
  if (entry.shape != expected) {
    return absl::InvalidArgumentError(
        Concat(where, "has shape ", ShapeText(entry.shape), ", expected ", ShapeText(expected)));
  }
  *wanted.view = {entry.data, *entry.dtype, std::max(wanted.rows, 1u), wanted.cols};
  return absl::OkStatus();
}

absl::Status MissingTensors(const std::string& model_dir, const std::vector<Wanted>& wanted,
                            const TensorFiles& tensors, const QuantizedWeights& quantized) {
  std::vector<std::string> missing;
  for (const Wanted& tensor : wanted) {
    if (tensors.holder.contains(tensor.name) || quantized.Holds(tensor.name)) continue;
    missing.push_back(tensor.name);
  }
  if (missing.empty()) return absl::OkStatus();
  const std::span<const std::string> named =
      std::span(missing).first(std::min(missing.size(), kMostNamed));
  return absl::InvalidArgumentError(Concat(
      model_dir, ": ", missing.size(), missing.size() == 1 ? " tensor is" : " tensors are",
      " missing: ", absl::StrJoin(named, ", "), missing.size() > named.size() ? ", ..." : ""));
}

// Where a matrix's codes, scales and zero points lie.
TensorLookup LookupIn(const std::string& model_dir, const TensorFiles& tensors) {
  return [holder = tensors.holder, model_dir](const std::string& name) -> FoundTensor {
    const auto found = holder.find(name);
    if (found == holder.end()) return {nullptr, model_dir};
    return {found->second->Find(name), found->second->path()};
  };
}

absl::Status BindAll(const std::vector<Wanted>& wanted, const TensorFiles& tensors,
                     QuantizedWeights& quantized) {
  std::set<std::string_view> names;
  for (const Wanted& tensor : wanted) names.insert(tensor.name);
  for (const Wanted& tensor : wanted) {
    absl::Status bound;
    if (tensor.rows > 0 && quantized.Holds(tensor.name)) {
      const std::string bias = tensor.name.substr(0, tensor.name.rfind('.')) + ".bias";
      bound =
          quantized.Bind(tensor.name, tensor.rows, tensor.cols, names.contains(bias), tensor.view);
    } else {
      bound = Bind(*tensors.holder.at(tensor.name), tensor);
    }
    if (!bound.ok()) return bound;
  }
  return absl::OkStatus();
}

// Tensors that nothing reads may mean another model than config.json says (a bias, say). Loading
// goes on, as other loaders do, but not in silence.
void WarnOfUnused(const std::string& model_dir, const std::vector<Wanted>& wanted,
                  const TensorFiles& tensors, const QuantizedWeights& quantized, bool tied) {
  std::set<std::string> used;
  for (const Wanted& tensor : wanted) {
    used.insert(tensor.name);
    if (!quantized.Holds(tensor.name)) continue;
    for (std::string& part : quantized.Parts(tensor.name)) used.insert(std::move(part));
  }
  size_t unused = 0;
  std::string_view first;
  for (const auto& [name, file] : tensors.holder) {
    const bool known = name.ends_with(".rotary_emb.inv_freq") ||  // of old exports
                       (tied && name == "lm_head.weight") || used.contains(name);
    if (known) continue;
    if (unused++ == 0) first = name;
  }
  if (unused > 0) {
    spdlog::warn("{}: {} tensors are not part of the model and stay unread, the first is {}",
                 model_dir, unused, first);
  }
}

class Hasher {
 public:
  Hasher() : state_(XXH3_createState()) {
    CHECK(state_ != nullptr);
    CHECK_EQ(XXH3_64bits_reset(state_), XXH_OK);
  }
  ~Hasher() { XXH3_freeState(state_); }
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;

  void Bytes(const void* data, size_t size) {
    CHECK_EQ(XXH3_64bits_update(state_, data, size), XXH_OK);
  }
  void Number(uint64_t number) { Bytes(&number, sizeof number); }
  void Number(double number) { Number(std::bit_cast<uint64_t>(number)); }
  void Text(std::string_view text) {
    Number(uint64_t{text.size()});
    Bytes(text.data(), text.size());
  }
  uint64_t Digest() const { return XXH3_64bits_digest(state_); }

 private:
  XXH3_state_t* const state_;
};

// What families have beside Llama's numbers; nothing for a model that has none of it.
void HashStructure(const ModelConfig& c, Hasher& hasher) {
  const RopeScaling& rope = c.rope_scaling;
  if (rope.kind > RopeScaling::Kind::kLlama3) {
    hasher.Text("rope");
    for (double number :
         {rope.beta_fast, rope.beta_slow, rope.truncate ? 1.0 : 0.0, rope.attention_factor}) {
      hasher.Number(number);
    }
    for (double divisor : rope.short_factor) hasher.Number(divisor);
    for (double divisor : rope.long_factor) hasher.Number(divisor);
  }
  if (!c.windows.empty()) {
    hasher.Text("windows");
    for (uint32_t window : c.windows) hasher.Number(uint64_t{window});
  }
  if (c.experts.count > 0) {
    hasher.Text("experts");
    for (uint32_t size : {c.experts.count, c.experts.per_token, c.experts.intermediate_size,
                          uint32_t{c.experts.normalise}}) {
      hasher.Number(uint64_t{size});
    }
  }
}

// The first and last bytes.
void Sample(Hasher& hasher, const void* data, size_t bytes) {
  const size_t sample = std::min(bytes, kSampleBytes);
  hasher.Bytes(data, sample);
  hasher.Bytes(static_cast<const std::byte*>(data) + bytes - sample, sample);
}

// Only what the forward pass computes with: a longer max_context or another EOS id leaves rows,
// labels and channel configs valid.
uint64_t Fingerprint(const ModelConfig& c, const std::vector<Wanted>& wanted,
                     const QuantizedWeights& quantized, const TensorLookup& lookup) {
  Hasher hasher;
  hasher.Text("sparsekv-model-1");
  for (uint32_t size : {c.vocab_size, c.hidden_size, c.intermediate_size, c.layers, c.heads,
                        c.kv_heads, c.head_dim, c.rope_scaling.original_context,
                        uint32_t{c.tie_embeddings}, static_cast<uint32_t>(c.rope_scaling.kind)}) {
    hasher.Number(uint64_t{size});
  }
  for (double number : {double{c.rms_norm_eps}, c.rope_theta, c.rope_scaling.factor,
                        c.rope_scaling.low_freq_factor, c.rope_scaling.high_freq_factor}) {
    hasher.Number(number);
  }
  HashStructure(c, hasher);
  for (const Wanted& tensor : wanted) {
    const WeightView& view = *tensor.view;
    hasher.Text(tensor.name);
    hasher.Text(Name(view.dtype));
    hasher.Number(uint64_t{view.rows});
    hasher.Number(uint64_t{view.cols});
    if (view.plain()) {
      Sample(hasher, view.data, WeightBytes(view));
      continue;
    }
    quantized.config().Hash([&](uint64_t number) { hasher.Number(number); });
    for (const std::string& part : quantized.Parts(tensor.name)) {
      const SafetensorsEntry& entry = *lookup(part).entry;
      hasher.Text(part);
      hasher.Text(entry.dtype_name);
      Sample(hasher, entry.data, entry.bytes);
    }
  }
  return hasher.Digest();
}

}  // namespace

std::unique_ptr<Weights> Weights::MadeUp(DType row_dtype) {
  std::unique_ptr<Weights> weights(new Weights());
  weights->fingerprint_ = 1;
  weights->row_dtype_ = row_dtype;
  return weights;
}

absl::StatusOr<std::unique_ptr<Weights>> Weights::Load(const std::string& model_dir,
                                                       const ModelConfig& config, Use use) {
  absl::StatusOr<TensorFiles> tensors = OpenFiles(model_dir);
  if (!tensors.ok()) return tensors.status();
  std::unique_ptr<Weights> weights(new Weights);
  weights->layers.resize(config.layers);
  const std::vector<Wanted> wanted = WantedTensors(config, *weights);
  const TensorLookup lookup = LookupIn(model_dir, *tensors);
  auto quantized = std::make_unique<QuantizedWeights>(config.quantization, lookup);
  absl::Status complete = MissingTensors(model_dir, wanted, *tensors, *quantized);
  if (!complete.ok()) return complete;
  absl::Status bound = BindAll(wanted, *tensors, *quantized);
  if (!bound.ok()) return bound;
  WarnOfUnused(model_dir, wanted, *tensors, *quantized, config.tie_embeddings);
  weights->fingerprint_ = Fingerprint(config, wanted, *quantized, lookup);
  if (use == Use::kCompute) {
    const auto start = std::chrono::steady_clock::now();
    if (absl::Status packed = quantized->Pack(); !packed.ok()) return packed;
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    if (quantized->any()) {
      spdlog::info("{}: {} codes packed into {} bytes in {:.1f} s", model_dir,
                   config.quantization.name, quantized->packed_bytes(), took.count());
    }
  }
  for (LayerWeights& layer : weights->layers) {
    if (absl::Status split = SplitFused(config, layer); !split.ok()) return split;
  }
  if (config.tie_embeddings) weights->lm_head = weights->embed;
  const auto row_dtype = [&](const WeightView& view) {
    return view.plain() ? view.dtype : config.row_dtype;
  };
  weights->row_dtype_ = row_dtype(weights->layers[0].wk);
  for (const LayerWeights& layer : weights->layers) {
    for (DType dtype : {row_dtype(layer.wk), row_dtype(layer.wv)}) {
      if (dtype != weights->row_dtype_) weights->row_dtype_ = DType::kF32;
    }
  }
  if (quantized->any()) weights->quantized_ = std::move(quantized);
  weights->files_ = std::move(tensors->files);
  return weights;
}

absl::StatusOr<Checkpoint> LoadCheckpoint(const std::string& model_dir, Weights::Use use) {
  absl::StatusOr<ModelConfig> config = ModelConfig::Load(model_dir);
  if (!config.ok()) return config.status();
  absl::StatusOr<std::unique_ptr<Weights>> weights = Weights::Load(model_dir, *config, use);
  if (!weights.ok()) return weights.status();
  config->row_dtype = (*weights)->row_dtype();
  return Checkpoint{*std::move(config), *std::move(weights)};
}

}  // namespace sparsekv
