#include "cli/recall/recall_checkpoint.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <vector>

#include "base/check.h"
#include "cli/recall/safetensors_writer.h"
#include "cli/recall/seeded_random.h"
#include "gpu_worker/checkpoint/json_file.h"

namespace sparsekv {
namespace {

constexpr uint64_t kSlotStream = 3;
constexpr uint64_t kLoudStream = 50;    // and the KV head's number
constexpr uint64_t kExtraStream = 100;  // and the layer's number

// Slow enough that the slow half of the pairs turns by less than 0.04 rad in a million tokens,
// while the fastest pairs still tell neighbours apart.
constexpr double kRopeTheta = 1e15;
constexpr float kRmsNormEps = 1e-6f;
constexpr double kConstant = 2.0;      // what the constant's place of the stream holds
constexpr double kPairScore = 20.0;    // of layer 0, for each fast pair whose phases agree
constexpr double kMatchScore = 128.0;  // of the last layer, for a row whose code is the asked one
constexpr double kLoud = 6.0;          // a loud channel beside a code's components, 5.5 at most
constexpr double kLogitGain = 2.0;
constexpr double kNoise = 0.08;  // deviation of what all extra layers together add to the stream
constexpr uint32_t kIntermediate = 64;

// Places in the residual stream; `dims` components in each room.
struct Rooms {
  uint32_t dims;
  uint32_t code() const { return 0; }
  uint32_t previous() const { return dims; }
  uint32_t answer() const { return 2 * dims; }
  uint32_t found() const { return 3 * dims; }
  uint32_t constant() const { return 4 * dims; }
};

class Matrix {
 public:
  Matrix(uint32_t rows, uint32_t cols) : rows_(rows), cols_(cols), values_(size_t{rows} * cols) {}
  float& At(uint32_t row, uint32_t col) {
    CHECK_LT(row, rows_);
    CHECK_LT(col, cols_);
    return values_[size_t{row} * cols_ + col];
  }
  void FillNormal(SeededRandom& random, double deviation) {
    for (float& x : values_) x = static_cast<float>(deviation * random.Normal());
  }
  uint32_t rows() const { return rows_; }
  uint32_t cols() const { return cols_; }
  const std::vector<float>& values() const { return values_; }

 private:
  uint32_t rows_;
  uint32_t cols_;
  std::vector<float> values_;
};

// The projections of one layer.
struct Layer {
  explicit Layer(const ModelConfig& c)
      : q(c.heads * c.head_dim, c.hidden_size),
        k(c.kv_heads * c.head_dim, c.hidden_size),
        v(c.kv_heads * c.head_dim, c.hidden_size),
        o(c.hidden_size, c.heads * c.head_dim),
        gate(c.intermediate_size, c.hidden_size),
        up(c.intermediate_size, c.hidden_size),
        down(c.hidden_size, c.intermediate_size) {}
  Matrix q, k, v, o, gate, up, down;
};

uint32_t FastPairs(uint32_t head_dim) { return head_dim * 3 / 16; }

// slots[i]: the channel of this KV head that holds component i of a code; all in slow pairs.
std::vector<uint16_t> SlowSlots(const RecallModel& model, uint32_t kv_head) {
  std::vector<uint16_t> slots;
  for (uint32_t pair = model.head_dim / 4; pair < model.head_dim / 2; ++pair) {
    slots.push_back(static_cast<uint16_t>(pair));
    slots.push_back(static_cast<uint16_t>(pair + model.head_dim / 2));
  }
  SeededRandom random(model.seed, kSlotStream + kv_head);
  random.Shuffle(slots);
  return slots;
}

// What RMS norm multiplies the stream by when it holds the constant and `codes` codes.
double NormGain(const ModelConfig& config, double energy, int codes) {
  const double sum = kConstant * kConstant + codes * energy;
  return 1.0 / std::sqrt(sum / config.hidden_size + config.rms_norm_eps);
}

// Later query heads of a group ask up to a quarter sharper, so that pooling sees unequal scores.
double Sharpness(uint32_t query_in_group, uint32_t group) {
  return 1.0 + 0.25 * query_in_group / group;
}

// V reads `from` of the attended token, O adds each head's share of it to `to`.
void CopyRoom(const ModelConfig& c, uint32_t dims, uint32_t from, uint32_t to, double gain,
              Layer& layer) {
  for (uint32_t i = 0; i < dims; ++i) {
    for (uint32_t h = 0; h < c.kv_heads; ++h) layer.v.At(h * c.head_dim + i, from + i) = 1.0f;
    const uint32_t first = i % c.kv_heads * c.group();
    for (uint32_t query = first; query < first + c.group(); ++query) {
      layer.o.At(to + i, query * c.head_dim + i) = static_cast<float>(1.0 / (gain * c.group()));
    }
  }
}

// The layer that finds the token before: q turns with its own position t, k is turned one position
// ahead, so a pair's product is cos(w (t - p - 1)) for the key at p.
Layer PreviousTokenLayer(const ModelConfig& c, const Rooms& rooms, double energy) {
  Layer layer(c);
  const double gain = NormGain(c, energy, 2);
  const double amplitude = std::sqrt(kPairScore * std::sqrt(c.head_dim)) / (gain * kConstant);
  const std::vector<float> frequency = c.InverseFrequency();
  for (uint32_t j = 0; j < FastPairs(c.head_dim); ++j) {
    for (uint32_t query = 0; query < c.heads; ++query) {
      layer.q.At(query * c.head_dim + j, rooms.constant()) =
          static_cast<float>(amplitude * Sharpness(query % c.group(), c.group()));
    }
    for (uint32_t h = 0; h < c.kv_heads; ++h) {
      const uint32_t row = h * c.head_dim + j;
      layer.k.At(row, rooms.constant()) = static_cast<float>(amplitude * std::cos(frequency[j]));
      layer.k.At(row + c.head_dim / 2, rooms.constant()) =
          static_cast<float>(amplitude * std::sin(frequency[j]));
    }
  }
  CopyRoom(c, rooms.dims, rooms.code(), rooms.previous(), gain, layer);
  return layer;
}

// The layer that finds the row whose previous token is this token.
Layer LookupLayer(const ModelConfig& c, const Rooms& rooms, double energy,
                  const RecallModel& model) {
  Layer layer(c);
  const double gain = NormGain(c, energy, 3);
  const double amplitude = std::sqrt(kMatchScore * std::sqrt(c.head_dim) / energy) / gain;
  for (uint32_t h = 0; h < c.kv_heads; ++h) {
    const std::vector<uint16_t> slots = SlowSlots(model, h);
    for (uint32_t i = 0; i < rooms.dims; ++i) {
      layer.k.At(h * c.head_dim + slots[i], rooms.previous() + i) = static_cast<float>(amplitude);
      for (uint32_t g = 0; g < c.group(); ++g) {
        layer.q.At((h * c.group() + g) * c.head_dim + slots[i], rooms.code() + i) =
            static_cast<float>(amplitude * Sharpness(g, c.group()));
      }
    }
  }
  for (uint32_t h = 0; h < c.kv_heads; ++h) {
    const auto loud = static_cast<float>(kLoud * amplitude / kConstant);
    for (uint16_t channel : RecallLoudChannels(model, h)) {
      layer.k.At(h * c.head_dim + channel, rooms.constant()) = loud;
      for (uint32_t g = 0; g < c.group(); ++g) {
        layer.q.At((h * c.group() + g) * c.head_dim + channel, rooms.constant()) = loud;
      }
    }
  }
  CopyRoom(c, rooms.dims, rooms.answer(), rooms.found(), gain, layer);
  return layer;
}

Layer RandomLayer(const ModelConfig& c, const RecallModel& model, uint32_t index) {
  Layer layer(c);
  SeededRandom random(model.seed, kExtraStream + index);
  const double unit = 1.0 / std::sqrt(c.hidden_size);  // keeps the size of a normed input
  for (Matrix* m : {&layer.q, &layer.k, &layer.v, &layer.gate, &layer.up}) {
    m->FillNormal(random, unit);
  }
  const double noise = kNoise / std::sqrt(2.0 * model.extra_layers);
  layer.o.FillNormal(random, noise / std::sqrt(c.heads * c.head_dim));
  layer.down.FillNormal(random, 2.0 * noise / std::sqrt(c.intermediate_size));
  return layer;
}

void AddLayer(const ModelConfig& c, uint32_t index, const Layer& layer, SafetensorsWriter& writer) {
  const std::string prefix = "model.layers." + std::to_string(index) + ".";
  const std::vector<float> ones(c.hidden_size, 1.0f);
  writer.Add(prefix + "input_layernorm.weight", {c.hidden_size}, ones);
  writer.Add(prefix + "post_attention_layernorm.weight", {c.hidden_size}, ones);
  const auto add = [&](const char* name, const Matrix& m) {
    writer.Add(prefix + name + ".weight", {m.rows(), m.cols()}, m.values());
  };
  add("self_attn.q_proj", layer.q);
  add("self_attn.k_proj", layer.k);
  add("self_attn.v_proj", layer.v);
  add("self_attn.o_proj", layer.o);
  add("mlp.gate_proj", layer.gate);
  add("mlp.up_proj", layer.up);
  add("mlp.down_proj", layer.down);
}

void AddEnds(const ModelConfig& c, const Rooms& rooms, const RecallCodes& codes,
             SafetensorsWriter& writer) {
  Matrix embed(c.vocab_size, c.hidden_size);
  Matrix output(c.vocab_size, c.hidden_size);
  for (uint32_t token = 0; token < c.vocab_size; ++token) {
    const bool value_form = token >= kRecallKeys && token < kRecallFirstFiller;
    const auto code = codes.Code(token);
    const auto answer = codes.Code(value_form ? token - kRecallKeys : token);
    for (uint32_t i = 0; i < rooms.dims; ++i) {
      embed.At(token, rooms.code() + i) = code[i];
      embed.At(token, rooms.answer() + i) = answer[i];
      output.At(token, rooms.found() + i) = static_cast<float>(kLogitGain) * code[i];
    }
    embed.At(token, rooms.constant()) = static_cast<float>(kConstant);
  }
  writer.Add("model.embed_tokens.weight", {c.vocab_size, c.hidden_size}, embed.values());
  writer.Add("model.norm.weight", {c.hidden_size}, std::vector<float>(c.hidden_size, 1.0f));
  writer.Add("lm_head.weight", {c.vocab_size, c.hidden_size}, output.values());
}

std::string ConfigJson(const ModelConfig& c) {
  const nlohmann::ordered_json config = {
      {"architectures", {"LlamaForCausalLM"}},
      {"model_type", "llama"},
      {"vocab_size", c.vocab_size},
      {"hidden_size", c.hidden_size},
      {"intermediate_size", c.intermediate_size},
      {"num_hidden_layers", c.layers},
      {"num_attention_heads", c.heads},
      {"num_key_value_heads", c.kv_heads},
      {"head_dim", c.head_dim},
      {"max_position_embeddings", c.max_context},
      {"rms_norm_eps", kRmsNormEps},
      {"rope_theta", c.rope_theta},
      {"rope_scaling", nullptr},
      {"hidden_act", "silu"},
      {"attention_bias", false},
      {"mlp_bias", false},
      {"tie_word_embeddings", false},
      {"bos_token_id", nullptr},
      {"eos_token_id", nullptr},
      {"torch_dtype", Name(c.row_dtype)},
  };
  return config.dump(2) + "\n";
}

}  // namespace

ModelConfig RecallConfig(const RecallModel& model, uint32_t max_context) {
  CHECK(model.head_dim == 64 || model.head_dim == 128);
  ModelConfig config;
  config.vocab_size = kRecallVocab;
  config.hidden_size = 4 * (model.head_dim / 2) + 64;  // four rooms, the constant, and some space
  config.intermediate_size = kIntermediate;
  config.layers = 2 + model.extra_layers;
  config.heads = model.kv_heads * model.group;
  config.kv_heads = model.kv_heads;
  config.head_dim = model.head_dim;
  config.max_context = max_context;
  config.rms_norm_eps = kRmsNormEps;
  config.rope_theta = kRopeTheta;
  config.row_dtype = model.dtype;
  return config;
}

absl::Status WriteRecallCheckpoint(const std::string& dir, const RecallModel& model,
                                   uint32_t max_context) {
  const ModelConfig config = RecallConfig(model, max_context);
  const Rooms rooms{model.head_dim / 2};
  const RecallCodes codes = MakeRecallCodes(model.difficulty, rooms.dims, model.seed);
  SafetensorsWriter writer(model.dtype);
  AddEnds(config, rooms, codes, writer);
  AddLayer(config, 0, PreviousTokenLayer(config, rooms, codes.energy), writer);
  for (uint32_t i = 1; i <= model.extra_layers; ++i) {
    AddLayer(config, i, RandomLayer(config, model, i), writer);
  }
  const uint32_t last = config.layers - 1;
  AddLayer(config, last, LookupLayer(config, rooms, codes.energy, model), writer);
  if (absl::Status s = writer.Write(dir + "/model.safetensors"); !s.ok()) return s;
  return WriteFileAtomically(dir + "/config.json", ConfigJson(config));
}

std::vector<uint16_t> RecallLoudChannels(const RecallModel& model, uint32_t kv_head) {
  const uint32_t half = model.head_dim / 2, end = model.head_dim / 4;
  std::vector<uint16_t> channels;
  for (uint32_t pair = end - model.head_dim / 32; pair < end; ++pair) {
    channels.push_back(static_cast<uint16_t>(pair));
    channels.push_back(static_cast<uint16_t>(pair + half));
  }
  SeededRandom random(model.seed, kLoudStream + kv_head);
  random.Shuffle(channels);
  channels.resize(model.loud_channels);
  return channels;
}

ChannelConfig RecallChannels(const RecallModel& model) {
  ChannelConfig channels;
  channels.layers = 2 + model.extra_layers;
  channels.kv_heads = model.kv_heads;
  channels.head_dim = model.head_dim;
  channels.criterion = "planted";
  for (uint32_t layer = 0; layer < channels.layers; ++layer) {
    for (uint32_t head = 0; head < channels.kv_heads; ++head) {
      std::vector<uint16_t> order;
      if (layer + 1 == channels.layers) order = SlowSlots(model, head);  // heavy components first
      // Then, and in the other layers, rotary pairs from the fastest, both channels together.
      for (uint32_t pair = 0; pair < model.head_dim / 2; ++pair) {
        for (uint32_t channel : {pair, pair + model.head_dim / 2}) {
          if (std::find(order.begin(), order.end(), channel) == order.end()) {
            order.push_back(static_cast<uint16_t>(channel));
          }
        }
      }
      channels.order.insert(channels.order.end(), order.begin(), order.end());
    }
  }
  channels.UseChannels(model.head_dim / 16);
  return channels;
}

}  // namespace sparsekv
