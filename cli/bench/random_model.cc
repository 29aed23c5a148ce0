#include "cli/bench/random_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/half.h"
#include "kv_store/memory_check.h"

namespace sparsekv {

namespace {

struct Shape {
  uint32_t layers, hidden, intermediate, heads, kv_heads, head_dim, vocab;
  double rope_theta;
};

const std::map<std::string, Shape>& Shapes() {
  static const std::map<std::string, Shape> shapes = {
      {"llama-3.2-1b", {16, 2048, 8192, 32, 8, 64, 128256, 500000}},
      {"llama-3.2-3b", {28, 3072, 8192, 24, 8, 128, 128256, 500000}},
      {"llama-3.1-8b", {32, 4096, 14336, 32, 8, 128, 128256, 500000}},
      {"llama-2-7b", {32, 4096, 11008, 32, 32, 128, 32000, 10000}},
      {"llama-2-13b", {40, 5120, 13824, 40, 40, 128, 32000, 10000}},
      {"mistral-7b", {32, 4096, 14336, 32, 8, 128, 32768, 1000000}},
      {"tiny", {4, 256, 512, 8, 2, 64, 512, 500000}},
  };
  return shapes;
}

uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

double UniformOf(uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1p-52 - 1; }  // +-1

// E[(silu(g) u)^2] of independent standard normal g and u.
double SwiGluPower() {
  double sum = 0;
  for (double g = -8; g < 8; g += 1e-3) {
    const double silu = g / (1 + std::exp(-g));
    sum += 1e-3 * silu * silu * std::exp(-g * g / 2) / std::sqrt(2 * M_PI);
  }
  return sum;
}

}  // namespace

void FillBf16(void* memory, size_t values, double deviation, uint64_t seed) {
  auto* out = static_cast<uint16_t*>(memory);
  const double width = deviation * std::sqrt(3.0);
  const unsigned threads = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::thread> workers;
  for (unsigned t = 0; t < threads; ++t) {
    workers.emplace_back([=] {
      const auto scale = static_cast<float>(width / 32768);
      for (size_t i = values * t / threads; i < values * (t + 1) / threads;) {
        // Four values of one draw.
        for (uint64_t bits = Mix(seed + i * 0x9E3779B97F4A7C15ull), n = 0;
             n < 4 && i < values * (t + 1) / threads; ++n, ++i, bits >>= 16) {
          out[i] = ToBf16(static_cast<float>(static_cast<int16_t>(bits)) * scale);
        }
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
}

void FillBits(void* memory, size_t bytes, uint64_t seed) {
  auto* out = static_cast<std::byte*>(memory);
  const unsigned threads = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::thread> workers;
  for (unsigned t = 0; t < threads; ++t) {
    workers.emplace_back([=] {
      const size_t words = bytes / sizeof(uint64_t);
      for (size_t i = words * t / threads; i < words * (t + 1) / threads; ++i) {
        const uint64_t bits = Mix(seed + i * 0x9E3779B97F4A7C15ull);
        std::memcpy(out + i * sizeof bits, &bits, sizeof bits);
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
  std::memset(out + bytes / 8 * 8, 0, bytes % 8);
}

std::vector<std::string> RandomModel::ShapeNames() {
  std::vector<std::string> names;
  for (const auto& [name, shape] : Shapes()) names.push_back(name);
  return names;
}

absl::StatusOr<std::unique_ptr<RandomModel>> RandomModel::Make(const RandomModelSpec& spec) {
  const auto found = Shapes().find(spec.shape);
  if (found == Shapes().end()) {
    return absl::InvalidArgumentError(absl::StrCat("--shape: \"", spec.shape, "\" is none of ",
                                                   absl::StrJoin(ShapeNames(), ", ")));
  }
  const Shape& shape = found->second;
  if (spec.labels.channels > shape.head_dim) {
    return absl::InvalidArgumentError(absl::StrCat("--label-channels: ", spec.labels.channels,
                                                   " is more than head_dim ", shape.head_dim,
                                                   " of ", spec.shape));
  }
  std::unique_ptr<RandomModel> model(new RandomModel());
  ModelConfig& config = model->files_.config;
  config.vocab_size = std::max(shape.vocab, spec.states);
  config.hidden_size = shape.hidden;
  config.intermediate_size = shape.intermediate;
  config.layers = spec.layers ? spec.layers : shape.layers;
  config.heads = shape.heads;
  config.kv_heads = shape.kv_heads;
  config.head_dim = shape.head_dim;
  config.max_context = spec.context;
  config.rms_norm_eps = 1e-5f;
  config.rope_theta = shape.rope_theta;
  config.row_dtype = DType::kBF16;
  const size_t per_layer =
      size_t{2} * shape.hidden *
      (2 * shape.head_dim * (shape.heads + shape.kv_heads) + 3 * shape.intermediate);
  const size_t bytes = per_layer * config.layers + size_t{4} * config.vocab_size * shape.hidden;
  const auto available = kv_store::AvailableMemory();
  if (!available.ok()) return available.status();
  if (absl::Status status = kv_store::CheckMemory(bytes, *available); !status.ok()) return status;
  model->MakeWeights(spec);
  model->MakeChannels(spec.seed, spec.labels);
  model->SetSteps(0.9);
  return model;
}

// Codes of random bits, integers in groups of 128 inputs and float8 with a scale per row, whose
// scales give the deviation.
WeightView RandomModel::Codes(uint32_t rows, uint32_t cols, double deviation) {
  const bool fp8 = encoding_ == Encoding::kFp8;
  WeightView view = {nullptr, DType::kBF16, rows, cols};
  view.coding = {.encoding = encoding_,
                 .group = fp8 || cols % 128 != 0 ? cols : 128,
                 .block_rows = 1,
                 .zero = static_cast<uint8_t>(encoding_ == Encoding::kInt4 ? 8 : 128)};
  Block block{std::make_unique_for_overwrite<std::byte[]>(WeightBytes(view)), WeightBytes(view)};
  const size_t scale_bytes = fp8 ? sizeof(float) : sizeof(uint16_t);
  const size_t scales = fp8 ? rows
                            : size_t{CeilDivide(rows, kPanelOutputs)} * kPanelOutputs *
                                  CeilDivide(cols, view.coding.group);
  const size_t code_bytes = block.bytes - scales * scale_bytes;
  FillBits(block.memory.get(), code_bytes, Mix(++seed_));
  double power = 0;  // of a code
  for (int code = 0; code < 256; ++code) {
    const double value = fp8 ? ((code & 0x7F) == 0x7F ? 480 : FromE4M3(static_cast<uint8_t>(code)))
                         : encoding_ == Encoding::kInt4 ? code % 16 - 8
                                                        : code - 128;
    power += value * value / 256;
  }
  const auto scale = static_cast<float>(deviation / std::sqrt(power));
  std::byte* const to = block.memory.get() + code_bytes;
  for (size_t i = 0; i < scales; ++i) {
    StoreValue(to, i, fp8 ? DType::kF32 : DType::kBF16, scale);
  }
  view.data = block.memory.get();
  view.coding.scales = to;
  blocks_.push_back(std::move(block));
  weight_bytes_ += blocks_.back().bytes;
  return view;
}

WeightView RandomModel::Matrix(uint32_t rows, uint32_t cols, double deviation) {
  weight_values_ += size_t{rows} * cols;
  if (encoding_ != Encoding::kPlain) return Codes(rows, cols, deviation);
  Block block{std::make_unique_for_overwrite<std::byte[]>(size_t{2} * rows * cols),
              size_t{2} * rows * cols};
  FillBf16(block.memory.get(), size_t{rows} * cols, deviation, Mix(++seed_));
  blocks_.push_back(std::move(block));
  weight_bytes_ += blocks_.back().bytes;
  return {blocks_.back().memory.get(), DType::kBF16, rows, cols};
}

WeightView RandomModel::Ones(uint32_t cols) {
  Block block{std::make_unique_for_overwrite<std::byte[]>(size_t{2} * cols), size_t{2} * cols};
  std::fill_n(reinterpret_cast<uint16_t*>(block.memory.get()), cols, ToBf16(1.0f));
  blocks_.push_back(std::move(block));
  return {blocks_.back().memory.get(), DType::kBF16, 1, cols};
}

void RandomModel::MakeWeights(const RandomModelSpec& spec) {
  const ModelConfig& config = files_.config;
  seed_ = spec.seed << 32;
  encoding_ = spec.encoding;
  files_.weights = Weights::MadeUp(DType::kBF16);
  Weights& weights = *files_.weights;
  const uint32_t hidden = config.hidden_size, q = config.heads * config.head_dim,
                 kv = config.kv_heads * config.head_dim, inner = config.intermediate_size;
  const double in = 1 / std::sqrt(static_cast<double>(hidden));
  const double step = std::sqrt(1 / (spec.layer_similarity * spec.layer_similarity) - 1);
  double size = 1;  // of a value of the residual stream
  for (uint32_t layer = 0; layer < config.layers; ++layer) {
    LayerWeights w;
    w.attention_norm = Ones(hidden);
    w.wq = Matrix(q, hidden, in);
    w.wk = Matrix(kv, hidden, in);
    w.wv = Matrix(kv, hidden, in);
    w.wo = Matrix(hidden, q, size * 0.1 / std::sqrt(static_cast<double>(q)));
    w.mlp_norm = Ones(hidden);
    w.gate = Matrix(inner, hidden, in);
    w.up = Matrix(inner, hidden, in);
    w.down = Matrix(hidden, inner, size * step / std::sqrt(inner * SwiGluPower()));
    weights.layers.push_back(w);
    size /= spec.layer_similarity;
  }
  weights.norm = Ones(hidden);
  weights.lm_head = Matrix(config.vocab_size, hidden, in);
  states_ = spec.states;
  // Only the rows of the walk are ever read.
  Block block{std::make_unique<std::byte[]>(size_t{2} * config.vocab_size * hidden), 0};
  embed_ = reinterpret_cast<uint16_t*>(block.memory.get());
  weights.embed = {block.memory.get(), DType::kBF16, config.vocab_size, hidden};
  blocks_.push_back(std::move(block));
}

// A channel of the slowest quarter of the rotary pairs turns by less than 1/50 in 1,000 tokens.
void RandomModel::MakeChannels(uint64_t seed, const BenchLabels& labels) {
  const ModelConfig& config = files_.config;
  ChannelConfig channels;
  channels.layers = config.layers;
  channels.kv_heads = config.kv_heads;
  channels.head_dim = config.head_dim;
  channels.criterion = "random";
  const uint32_t half = config.head_dim / 2, slow = half * 3 / 4;
  for (uint32_t i = 0; i < config.layers * config.kv_heads; ++i) {
    std::vector<uint16_t> order;
    for (uint32_t c = 0; c < config.head_dim; ++c) order.push_back(static_cast<uint16_t>(c));
    std::ranges::sort(order, {}, [&](uint16_t c) {
      return std::pair(c % half < slow, Mix(seed * 7919 + i * 1000 + c));
    });
    channels.order.insert(channels.order.end(), order.begin(), order.end());
  }
  channels.label_format = labels.format;
  channels.UseChannels(labels.Channels(config.head_dim));
  files_.channels = std::move(channels);
}

void RandomModel::SetSteps(double step_cosine) {
  const uint32_t hidden = files_.config.hidden_size;
  const double turn = std::sqrt(1 - step_cosine * step_cosine);
  std::vector<double> state(hidden);
  for (uint32_t s = 0; s < states_; ++s) {
    for (uint32_t i = 0; i < hidden; ++i) {
      const double fresh = UniformOf(Mix(seed_ + (uint64_t{s} << 32) + i)) * std::sqrt(3.0);
      state[i] = s == 0 ? fresh : step_cosine * state[i] + turn * fresh;
      embed_[size_t{s} * hidden + i] = ToBf16(static_cast<float>(state[i]));
    }
  }
}

}  // namespace sparsekv
