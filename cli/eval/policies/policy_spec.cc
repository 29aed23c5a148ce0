#include "cli/eval/policies/policy_spec.h"

#include <charconv>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/check.h"
#include "cli/eval/policies/policies.h"

namespace sparsekv {

namespace {

// One parameter: a number within bounds, or one of some words, kept as its place among them.
struct Parameter {
  const char* name;
  double fallback, min, max;
  std::vector<std::string> words = {};
  bool whole = true;
};

const Parameter kSinks = {"sinks", 4, 0, 1 << 20};
const Parameter kRecent = {"recent", 65, 0, 1 << 20};
const Parameter kChannels = {"channels", 0, 0, kMaxHeadDim};
const Parameter kBits = {"bits", 0, 0, 4, {"config", "16", "8", "4", "2"}};
const Parameter kQueryBits = {"query-bits", 0, 0, 3, {"16", "8", "4", "2"}};
const Parameter kCosine = {"cosine", 0, 0, 1};
const Parameter kPooling = {
    "pooling", 0, 0, 3, {"config", "max-normalised", "sum", "softmax-mass"}};

// A word of the user's own, not one of `words`.
constexpr char kChannelSet[] = "from";

const std::map<std::string, std::vector<Parameter>>& Known() {
  static const std::map<std::string, std::vector<Parameter>> known = {
      {"dense", {}},
      {"oracle", {}},
      {"random", {kSinks, kRecent}},
      {"double-sparsity", {kChannels, kBits, kQueryBits, kCosine, kPooling, kSinks, kRecent}},
      {"double-sparsity-offload",
       {kChannels,
        kBits,
        kQueryBits,
        kCosine,
        kPooling,
        kSinks,
        kRecent,
        {"correction", 0, 0, 1, {"on", "none"}}}},
      {"double-sparsity-adaptive",
       {kChannels, kBits, kQueryBits, kCosine, kPooling, {"target", 0.98, 0, 1, {}, false}}},
      {"streaming-llm", {kSinks, {"positions", 0, 0, 2, {"cache", "lm-infinite", "text"}}}},
      {"window", {{"globals", 0, 0, 1 << 20}, {"dilation", 1, 1, 1 << 20}}},
      {"h2o", {{"recent", 0.5, 0, 1, {}, false}}},
      {"scissorhands",
       {{"history", 400, 1, 1 << 20}, {"recent", 10, 0, 1 << 20}, {"drop", 0.5, 0, 1, {}, false}}},
      {"sparq", {kChannels, {"local", 0.25, 0, 1, {}, false}, {"mean-value", 1, 0, 1}}},
      {"quest", {{"page", 16, 1, 4096}, {"dense-layers", 0, 0, kMaxLayers}}},
      {"fastgen", {{"recovery", 0.95, 0, 1, {}, false}}},
  };
  return known;
}

absl::Status Bad(const std::string& text, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("--policy ", text, ": ", what));
}

absl::StatusOr<double> ParseValue(const std::string& text, const Parameter& parameter,
                                  const std::string& value) {
  if (!parameter.words.empty()) {
    for (size_t i = 0; i < parameter.words.size(); ++i) {
      if (parameter.words[i] == value) return static_cast<double>(i);
    }
    return Bad(text, absl::StrCat(parameter.name, " \"", value, "\" is not one of ",
                                  absl::StrJoin(parameter.words, ", ")));
  }
  double number = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  const bool read = error == std::errc() && end == value.data() + value.size() && !value.empty();
  if (!read || !(number >= parameter.min && number <= parameter.max) ||
      (parameter.whole && number != std::floor(number))) {
    return Bad(text, absl::StrCat(parameter.name, " \"", value, "\" is not a ",
                                  parameter.whole ? "whole number" : "number", " in ",
                                  parameter.min, "..", parameter.max));
  }
  return number;
}

}  // namespace

std::vector<std::string> PolicySpec::Names() {
  std::vector<std::string> names;
  for (const auto& [name, parameters] : Known()) names.push_back(name);
  return names;
}

absl::StatusOr<PolicySpec> PolicySpec::Parse(const std::string& text) {
  const size_t colon = text.find(':');
  PolicySpec spec;
  spec.text_ = text;
  spec.name_ = text.substr(0, colon);
  const auto known = Known().find(spec.name_);
  if (known == Known().end()) {
    return Bad(text, absl::StrCat("is not one of ", absl::StrJoin(Names(), ", ")));
  }
  for (const Parameter& p : known->second) spec.parameters_[p.name] = p.fallback;
  if (colon == std::string::npos) return spec;
  const std::vector<std::string> parts = absl::StrSplit(text.substr(colon + 1), ',');
  for (const std::string& part : parts) {
    const size_t equals = part.find('=');
    const std::string name = part.substr(0, equals);
    if (name == kChannelSet && spec.needs_channels() && equals + 1 < part.size()) {
      spec.channel_set_ = part.substr(equals + 1);
      continue;
    }
    const Parameter* parameter = nullptr;
    for (const Parameter& p : known->second) {
      if (p.name == name) parameter = &p;
    }
    if (!parameter || equals == std::string::npos) {
      std::vector<std::string> names;
      for (const Parameter& p : known->second) names.emplace_back(p.name);
      if (spec.needs_channels()) names.emplace_back(kChannelSet);
      return Bad(text,
                 absl::StrCat("\"", part, "\" is not a parameter of ", spec.name_, " (",
                              names.empty() ? "it has none" : absl::StrJoin(names, ", "), ")"));
    }
    auto value = ParseValue(text, *parameter, part.substr(equals + 1));
    if (!value.ok()) return value.status();
    spec.parameters_[name] = *value;
  }
  return spec;
}

bool PolicySpec::needs_channels() const { return name_.starts_with("double-sparsity"); }
bool PolicySpec::needs_attention() const { return name_ == "h2o"; }
bool PolicySpec::needs_last_attention() const {
  return name_ == "scissorhands" || name_ == "fastgen";
}
bool PolicySpec::needs_values() const { return name_ == "sparq" && Count("mean-value") == 1; }
bool PolicySpec::needs_prediction() const {
  return name_ == "double-sparsity-offload" && Count("correction") == 1;
}

absl::Status PolicySpec::Check(const HeadShape& shape, const ChannelConfig* channels) const {
  if (needs_channels() && !channels) {
    return Bad(text_, "the model directory has no channels.json (make one with calibrate)");
  }
  const auto found = parameters_.find("channels");
  if (found != parameters_.end() && found->second > shape.head_dim) {
    return Bad(text_, absl::StrCat("channels ", Count("channels"), " is more than head_dim ",
                                   shape.head_dim));
  }
  if (adaptive() && !(Number("target") > 0 && Number("target") < 1)) {
    return Bad(text_, absl::StrCat("target ", Number("target"), " is not within (0, 1)"));
  }
  return absl::OkStatus();
}

std::vector<std::unique_ptr<HeadPolicy>> PolicySpec::Make(std::span<const HeadShape> shapes,
                                                          const ChannelConfig* channels,
                                                          uint64_t seed) const {
  std::vector<std::unique_ptr<HeadPolicy>> heads;
  if (adaptive()) {
    std::vector<DoubleSparsityOptions> options;
    for (const HeadShape& shape : shapes) options.push_back(Labels(shape, *channels));
    return MakeAdaptive(shapes, options, Number("target"));
  }
  for (const HeadShape& shape : shapes) heads.push_back(MakeHead(shape, channels, seed));
  return heads;
}

DoubleSparsityOptions PolicySpec::Labels(const HeadShape& shape,
                                         const ChannelConfig& channels) const {
  static constexpr uint32_t kBitsOf[] = {16, 8, 4, 2};
  const uint32_t bits = Count("bits");
  const size_t head = size_t{shape.layer} * channels.kv_heads + shape.kv_head;
  const uint32_t pooling = Count("pooling");
  const uint32_t count = Count("channels") ? Count("channels") : channels.channels;
  return {.channels = {channels.order.data() + head * channels.head_dim, count},
          .pooling = pooling ? static_cast<Pooling>(pooling - 1) : channels.pooling,
          .format = bits ? LabelFormat::kBf16 : channels.label_format,
          .bits = bits ? kBitsOf[bits - 1] : 16,
          .query_bits = kBitsOf[Count("query-bits")],
          .cosine = Count("cosine") == 1};
}

std::unique_ptr<HeadPolicy> PolicySpec::MakeHead(const HeadShape& shape,
                                                 const ChannelConfig* channels,
                                                 uint64_t seed) const {
  const auto always = [&] { return AlwaysRows{Count("sinks"), Count("recent")}; };
  if (name_ == "oracle") return MakeOracle(shape);
  if (name_ == "random") return MakeRandom(shape, always(), seed);
  if (name_ == "streaming-llm") {
    return MakeStreaming(Count("sinks"), static_cast<SinkDistance>(Count("positions")));
  }
  if (name_ == "window") return MakeWindow(Count("globals"), Count("dilation"));
  if (name_ == "h2o") return MakeH2o(shape, Number("recent"));
  if (name_ == "scissorhands") {
    return MakeScissorhands(shape, {Count("history"), Count("recent"), Number("drop")});
  }
  if (name_ == "sparq") {
    return MakeSparq(shape, {Count("channels"), Number("local"), Count("mean-value") == 1});
  }
  if (name_ == "quest") return MakeQuest(shape, {Count("page"), Count("dense-layers")});
  if (name_ == "fastgen") return MakeFastGen(Number("recovery"));
  CHECK(needs_channels());
  DoubleSparsityOptions options = Labels(shape, *channels);
  options.offload = name_ == "double-sparsity-offload";
  options.corrected = !needs_prediction();
  options.always = always();
  return MakeDoubleSparsity(shape, options);
}

}  // namespace sparsekv
