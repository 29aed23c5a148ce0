#include "gpu_worker/channel_config.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/concat.h"
#include "base/ids.h"
#include "gpu_worker/checkpoint/json_file.h"

namespace sparsekv {
namespace {

using nlohmann::json;

constexpr size_t kMaxFileBytes = 64 << 20;
constexpr std::string_view kFormat = "sparsekv-channels";
constexpr uint32_t kVersion = 1;

// Appends `list`, a permutation of 0..head_dim-1, to `order`. What is wrong; empty when nothing is.
std::string AppendPermutation(const json& list, uint32_t head_dim, std::vector<uint16_t>& order) {
  if (!list.is_array() || list.size() != head_dim) {
    return Concat("is not a list of ", head_dim, " channels");
  }
  std::vector<bool> seen(head_dim);
  for (size_t i = 0; i < head_dim; ++i) {
    if (!list[i].is_number_unsigned() || list[i].get<uint64_t>() >= head_dim) {
      return Concat("has channel ", list[i].dump().substr(0, 32), " at place ", i,
                    ", out of range 0..", head_dim - 1);
    }
    const uint16_t channel = list[i].get<uint16_t>();
    if (seen[channel]) return Concat("has channel ", channel, " twice");
    seen[channel] = true;
    order.push_back(channel);
  }
  return "";
}

// Appends the orders of `heads` heads. What is wrong; empty when nothing is.
std::string AppendHeads(const json& lists, uint32_t heads, uint32_t head_dim,
                        std::vector<uint16_t>& order) {
  if (!lists.is_array() || lists.size() != heads) {
    return Concat(" is not a list of ", heads, " heads");
  }
  for (uint32_t head = 0; head < heads; ++head) {
    const std::string wrong = AppendPermutation(lists[head], head_dim, order);
    if (!wrong.empty()) return Concat("[", head, "] ", wrong);
  }
  return "";
}

void ExpectModelSize(JsonFields& fields, const char* name, uint32_t expected) {
  const uint32_t found = fields.Unsigned(name, 0, UINT32_MAX);
  if (found != expected) fields.Refuse(name, Concat("is not the model's ", expected));
}

uint64_t ParseHex(JsonFields& fields, const char* name) {
  const std::string text = fields.String(name);
  const bool good =
      text.size() == 16 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
  if (good) return std::stoull(text, nullptr, 16);
  fields.Refuse(name, "is not 16 hexadecimal digits");
  return 0;
}

// The optional "recall".
void LoadRecall(const json& object, const ModelConfig& model, JsonFields& file,
                ChannelConfig::Recall& recall) {
  if (!object.is_object()) return file.RefuseFile("recall is not an object");
  JsonFields fields(object, file.file(), "recall.");
  recall.budget_denominator = fields.Unsigned("budget_denominator", 1, UINT32_MAX);
  recall.context = fields.Unsigned("context", 0, UINT32_MAX);
  recall.queries = fields.Unsigned("queries", 1, UINT32_MAX);
  if (!fields.status().ok()) {
    // Its line names the file already.
    return file.RefuseFile(std::string(fields.status().message()).substr(file.file().size() + 2));
  }
  const auto shaped = [&](const json& list, size_t size) {
    return list.is_array() && list.size() == size;
  };
  if (!fields.Has("mass") || !shaped(fields.Value("mass"), model.layers)) {
    return file.RefuseFile(Concat("recall.mass is not a list of ", model.layers, " layers"));
  }
  for (const json& layer : fields.Value("mass")) {
    if (!shaped(layer, model.kv_heads)) {
      return file.RefuseFile(Concat("recall.mass is not of ", model.kv_heads, " heads a layer"));
    }
    for (const json& mass : layer) {
      if (!mass.is_number() || !(mass.get<double>() >= 0 && mass.get<double>() <= 1)) {
        return file.RefuseFile(
            Concat("recall.mass has ", mass.dump().substr(0, 32), ", out of range 0..1"));
      }
      recall.mass.push_back(mass.get<double>());
    }
  }
}

absl::StatusOr<ChannelConfig> LoadOurs(JsonFields& fields, const ModelConfig& model,
                                       uint64_t fingerprint) {
  if (fields.String("format") != kFormat) {
    fields.Refuse("format", Concat("is not known (known: ", kFormat, ")"));
  }
  if (fields.Unsigned("version", 0, UINT32_MAX) != kVersion) {
    fields.Refuse("version", Concat("is not known (known: ", kVersion, ")"));
  }
  if (!fields.status().ok()) return fields.status();  // nothing else need be what we expect
  if (ParseHex(fields, "fingerprint") != fingerprint) {
    fields.Refuse("fingerprint", Concat("is not this model's, ", HexId(fingerprint)));
  }
  ExpectModelSize(fields, "layers", model.layers);
  ExpectModelSize(fields, "kv_heads", model.kv_heads);
  ExpectModelSize(fields, "head_dim", model.head_dim);
  ChannelConfig config;
  if (const auto format = ParseLabelFormat(fields.StringOr("label_format", "bf16")); format) {
    config.label_format = *format;
  } else {
    fields.Refuse("label_format", "is not known (known: bf16, int8, int4, int2)");
  }
  config.channels = fields.Unsigned("channels", 1, model.head_dim);
  if (const auto pooling = ParsePooling(fields.String("pooling")); pooling) {
    config.pooling = *pooling;
  } else {
    fields.Refuse("pooling", "is not known (known: max-normalised, sum, softmax-mass)");
  }
  config.criterion = fields.String("criterion");
  if (fields.Has("text") && fields.Value("text").is_object()) {
    JsonFields text(fields.Value("text"), fields.file(), "text.");
    config.text.xxh3 = ParseHex(text, "xxh3");
    config.text.tokens = text.Unsigned("tokens", 0, UINT32_MAX);
    if (!text.status().ok()) return text.status();
  }
  config.context = fields.UnsignedOr("context", 0, 0, UINT32_MAX);
  if (fields.Has("recall")) LoadRecall(fields.Value("recall"), model, fields, config.recall);
  if (!fields.Has("order") || !fields.Value("order").is_array() ||
      fields.Value("order").size() != model.layers) {
    fields.RefuseFile(Concat("order is not a list of ", model.layers, " layers"));
  }
  if (!fields.status().ok()) return fields.status();
  for (uint32_t layer = 0; layer < model.layers; ++layer) {
    const std::string wrong =
        AppendHeads(fields.Value("order")[layer], model.kv_heads, model.head_dim, config.order);
    if (!wrong.empty()) fields.RefuseFile(Concat("order[", layer, "]", wrong));
    if (!fields.status().ok()) return fields.status();
  }
  return config;
}

nlohmann::ordered_json RecallJson(const ChannelConfig& config) {
  const ChannelConfig::Recall& recall = config.recall;
  CHECK_EQ(recall.mass.size(), size_t{config.layers} * config.kv_heads);
  auto mass = nlohmann::ordered_json::array();
  for (size_t i = 0; i < recall.mass.size(); ++i) {
    if (i % config.kv_heads == 0) mass.push_back(nlohmann::ordered_json::array());
    mass.back().push_back(std::clamp(std::round(recall.mass[i] * 1e4) / 1e4, 0.0, 1.0));
  }
  return {{"budget_denominator", recall.budget_denominator},
          {"context", recall.context},
          {"queries", recall.queries},
          {"mass", std::move(mass)}};
}

std::string PublishedKey(uint32_t layer, std::string_view criterion) {
  return Concat("model.layers.", layer, ".self_attn.", criterion, "_proj");
}

// The criterion to take from a published file: the wanted one, or the first that every layer has.
std::string ChooseCriterion(JsonFields& fields, uint32_t layers, std::string_view wanted) {
  std::vector<std::string> candidates = {"qk", "k", "q"};
  if (!wanted.empty()) candidates = {std::string(wanted)};
  for (const std::string& candidate : candidates) {
    uint32_t have = 0;
    while (have < layers && fields.Has(PublishedKey(have, candidate).c_str())) ++have;
    if (have < layers) continue;
    if (fields.Has(PublishedKey(layers, candidate).c_str())) {
      fields.RefuseFile(
          Concat(PublishedKey(layers, candidate), " is more than the model's ", layers, " layers"));
    }
    return candidate;
  }
  fields.RefuseFile(Concat("no order of criterion ", absl::StrJoin(candidates, ", "),
                           " for each of the model's ", layers, " layers"));
  return "";
}

absl::StatusOr<ChannelConfig> LoadPublished(JsonFields& fields, const ModelConfig& model,
                                            std::string_view wanted) {
  ChannelConfig config;
  config.channels = ChannelConfig::DefaultChannels(model.head_dim);
  config.criterion = ChooseCriterion(fields, model.layers, wanted);
  bool pooled = false;
  for (uint32_t layer = 0; layer < model.layers && fields.status().ok(); ++layer) {
    const std::string key = PublishedKey(layer, config.criterion);
    const json& lists = fields.Value(key.c_str());
    // K's orders may be per KV head; those of q and qk are per query head.
    const bool per_kv_head = lists.is_array() && lists.size() == model.kv_heads;
    std::vector<uint16_t> orders;
    const uint32_t heads = per_kv_head ? model.kv_heads : model.heads;
    const std::string wrong = AppendHeads(lists, heads, model.head_dim, orders);
    if (!wrong.empty()) fields.RefuseFile(Concat(key, wrong));
    if (!fields.status().ok()) break;
    if (!per_kv_head) orders = PoolOrders(orders, model.kv_heads, model.head_dim);
    pooled = pooled || !per_kv_head;
    config.order.insert(config.order.end(), orders.begin(), orders.end());
  }
  if (!fields.status().ok()) return fields.status();
  spdlog::info("{}: published format, criterion {}{}; it names no model, only sizes were checked",
               fields.file(), config.criterion,
               pooled ? ", orders of query heads pooled per KV head by summed rank" : "");
  return config;
}

}  // namespace

std::string_view Name(Pooling pooling) {
  switch (pooling) {
    case Pooling::kMaxNormalised:
      return "max-normalised";
    case Pooling::kSum:
      return "sum";
    case Pooling::kSoftmaxMass:
      return "softmax-mass";
  }
  return "?";
}

std::optional<Pooling> ParsePooling(std::string_view name) {
  for (Pooling pooling : {Pooling::kMaxNormalised, Pooling::kSum, Pooling::kSoftmaxMass}) {
    if (name == Name(pooling)) return pooling;
  }
  return std::nullopt;
}

std::vector<uint16_t> PoolOrders(const std::vector<uint16_t>& orders, uint32_t kv_heads,
                                 uint32_t head_dim) {
  const size_t group = orders.size() / head_dim / kv_heads;
  std::vector<uint16_t> pooled;
  for (uint32_t head = 0; head < kv_heads; ++head) {
    std::vector<uint32_t> rank_sum(head_dim, 0);
    for (size_t query = head * group; query < (head + 1) * group; ++query) {
      for (uint32_t rank = 0; rank < head_dim; ++rank) {
        rank_sum[orders[query * head_dim + rank]] += rank;
      }
    }
    std::vector<uint16_t> order(head_dim);
    std::iota(order.begin(), order.end(), uint16_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](uint16_t a, uint16_t b) { return rank_sum[a] < rank_sum[b]; });
    pooled.insert(pooled.end(), order.begin(), order.end());
  }
  return pooled;
}

const uint16_t* ChannelConfig::Layer(uint32_t layer) const {
  CHECK_LT(layer, layers);
  return channel_ids.data() + size_t{layer} * kv_heads * channels;
}

uint32_t ChannelConfig::DefaultChannels(uint32_t head_dim, LabelFormat format) {
  return std::max(2u, head_dim / (format == LabelFormat::kBf16 ? 16 : 4));
}

void ChannelConfig::UseChannels(uint32_t count) {
  CHECK_GE(count, 1u);
  CHECK_LE(count, head_dim);
  CHECK_EQ(order.size(), size_t{layers} * kv_heads * head_dim);
  channels = count;
  channel_ids.clear();
  for (size_t head = 0; head < size_t{layers} * kv_heads; ++head) {
    const auto first = order.begin() + static_cast<ptrdiff_t>(head * head_dim);
    channel_ids.insert(channel_ids.end(), first, first + count);
  }
}

absl::StatusOr<ChannelConfig> ChannelConfig::Load(const std::string& path, const ModelConfig& model,
                                                  uint64_t fingerprint, uint32_t channels_override,
                                                  std::string_view criterion) {
  if (channels_override > model.head_dim) {
    return absl::InvalidArgumentError(
        Concat("label channels ", channels_override, " are more than head_dim ", model.head_dim));
  }
  if (criterion != "" && criterion != "qk" && criterion != "k" && criterion != "q") {
    return absl::InvalidArgumentError(
        Concat("channel criterion \"", criterion, "\" is not known (known: qk, k, q)"));
  }
  absl::StatusOr<json> object = ReadJsonObject(path, kMaxFileBytes);
  if (!object.ok()) return object.status();
  JsonFields fields(*object, path);
  bool published = false;
  for (const auto& item : object->items()) {
    published = published || item.key().starts_with("model.layers.");
  }
  absl::StatusOr<ChannelConfig> config = published && !fields.Has("format")
                                             ? LoadPublished(fields, model, criterion)
                                             : LoadOurs(fields, model, fingerprint);
  if (!config.ok()) return config;
  config->layers = model.layers;
  config->kv_heads = model.kv_heads;
  config->head_dim = model.head_dim;
  config->UseChannels(channels_override > 0 ? channels_override : config->channels);
  return config;
}

absl::Status ChannelConfig::Save(const std::string& path, uint64_t fingerprint) const {
  CHECK_EQ(order.size(), size_t{layers} * kv_heads * head_dim);
  nlohmann::ordered_json object = {
      {"format", kFormat},
      {"version", kVersion},
      {"fingerprint", HexId(fingerprint)},
      {"layers", layers},
      {"kv_heads", kv_heads},
      {"head_dim", head_dim},
      {"channels", channels},
      {"label_format", Name(label_format)},
      {"pooling", Name(pooling)},
      {"criterion", criterion},
      {"text", {{"xxh3", HexId(text.xxh3)}, {"tokens", text.tokens}}},
  };
  if (context > 0) object["context"] = context;
  if (recall.queries > 0) object["recall"] = RecallJson(*this);
  nlohmann::ordered_json& lists = object["order"] = nlohmann::ordered_json::array();
  size_t next = 0;
  for (uint32_t layer = 0; layer < layers; ++layer) {
    lists.push_back(nlohmann::ordered_json::array());
    for (uint32_t head = 0; head < kv_heads; ++head, next += head_dim) {
      const auto first = order.begin() + static_cast<ptrdiff_t>(next);
      lists.back().push_back(std::vector<uint16_t>(first, first + head_dim));
    }
  }
  return WriteFileAtomically(path, object.dump() + "\n");
}

}  // namespace sparsekv
