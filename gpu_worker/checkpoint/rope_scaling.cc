#include "gpu_worker/checkpoint/rope_scaling.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>
#include <set>

#include "base/check.h"
#include "base/concat.h"
#include "base/limits.h"
#include "gpu_worker/checkpoint/json_file.h"

namespace sparsekv {
namespace {

using nlohmann::json;
using Kind = RopeScaling::Kind;

// transformers' _compute_llama3_parameters: long wavelengths turn `factor` times slower, short ones
// as before, the band between is blended. All in float32, as there, where a number over a tensor is
// the tensor's reciprocal times the number.
float Llama3Frequency(float frequency, const RopeScaling& scaling) {
  const float factor = static_cast<float>(scaling.factor);
  const double context = scaling.original_context;
  const float low_wavelength = static_cast<float>(context / scaling.low_freq_factor);
  const float high_wavelength = static_cast<float>(context / scaling.high_freq_factor);
  const float wavelength = 1.0f / frequency * static_cast<float>(2 * std::numbers::pi);
  if (wavelength < high_wavelength) return frequency;
  if (wavelength > low_wavelength) return frequency / factor;
  const float low = static_cast<float>(scaling.low_freq_factor);
  const float band = static_cast<float>(scaling.high_freq_factor - scaling.low_freq_factor);
  const float smooth = (1.0f / wavelength * static_cast<float>(context) - low) / band;
  return (1.0f - smooth) * frequency / factor + smooth * frequency;
}

// The pair of channels that turns so many times within the original context.
double YarnPair(double rotations, double head_dim, double theta, double context) {
  return head_dim * std::log(context / (rotations * 2 * std::numbers::pi)) / (2 * std::log(theta));
}

// transformers' _compute_yarn_parameters: pairs that turn often keep their frequency, those that
// turn seldom are slowed down by `factor`, a linear ramp leads from one to the other.
std::vector<float> YarnFrequencies(const std::vector<float>& powers, const RopeConfig& rope,
                                   uint32_t head_dim) {
  const RopeScaling& s = rope.scaling;
  double low = YarnPair(s.beta_fast, head_dim, rope.theta, s.original_context);
  double high = YarnPair(s.beta_slow, head_dim, rope.theta, s.original_context);
  if (s.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, head_dim - 1.0);
  if (low == high) high += 0.001;
  std::vector<float> frequencies;
  for (size_t i = 0; i < powers.size(); ++i) {
    const float along =
        (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low);
    const float kept = 1.0f - std::clamp(along, 0.0f, 1.0f);
    const float slowed = 1.0f / (static_cast<float>(s.factor) * powers[i]);
    frequencies.push_back(slowed * (1.0f - kept) + 1.0f / powers[i] * kept);
  }
  return frequencies;
}

// The rope settings proper, as one object.
class Reader {
 public:
  Reader(const json& config, const json& object, const std::string& file, const std::string& name,
         const RopeConfig::Defaults& defaults, uint32_t head_dim, uint32_t max_context)
      : config_(config),
        fields_(object, file, name + "."),
        object_(object),
        defaults_(defaults),
        head_dim_(head_dim),
        max_context_(max_context) {}

  absl::Status Read(RopeConfig& rope) {
    rope.theta = fields_.PositiveOr("rope_theta", rope.theta);
    if (fields_.PositiveOr("partial_rotary_factor", 1.0) != 1.0) {
      fields_.Refuse("partial_rotary_factor", "is not supported (supported: 1.0)");
    }
    const char* key = fields_.Has("rope_type") ? "rope_type" : "type";
    std::string type = fields_.StringOr(key, "default");
    if (defaults_.su && (type == "su" || type == "yarn")) type = "longrope";
    if (type == "llama3") {
      ReadLlama3(rope.scaling);
    } else if (type == "linear") {
      ReadLinear(rope.scaling);
    } else if (type == "dynamic") {
      Known({"factor"});
    } else if (type == "yarn") {
      ReadYarn(rope);
    } else if (type == "longrope") {
      ReadLongRope(rope.scaling);
    } else if (type != "default") {
      fields_.Refuse(key,
                     "is not supported (supported: default, linear, dynamic, llama3, yarn, "
                     "longrope)");
    }
    return outer_.ok() ? fields_.status() : outer_;
  }

 private:
  // A field that nobody here knows may mean another function.
  void Known(std::set<std::string> names) {
    names.insert({"rope_theta", "rope_type", "type", "partial_rotary_factor"});
    for (const auto& [name, value] : object_.items()) {
      if (!names.contains(name) && !value.is_null()) {
        fields_.Refuse(name.c_str(), "is not known for this rope_type");
      }
    }
  }

  // Of config.json itself where it is there, else of the object, else the family's default.
  void ReadOriginalContext(RopeScaling& scaling) {
    const uint32_t fallback = defaults_.original ? defaults_.original : max_context_;
    JsonFields whole(config_, fields_.file());
    constexpr const char* kName = "original_max_position_embeddings";
    if (whole.Has(kName)) {
      scaling.original_context = whole.Unsigned(kName, 1, kMaxContext);
      outer_ = whole.status();
    } else {
      scaling.original_context = fields_.UnsignedOr(kName, fallback, 1, kMaxContext);
    }
    explicit_original_ = whole.Has(kName) || fields_.Has(kName);
  }

  void ReadLlama3(RopeScaling& scaling) {
    Known({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"});
    scaling.kind = Kind::kLlama3;
    scaling.factor = fields_.Positive("factor");
    scaling.low_freq_factor = fields_.Positive("low_freq_factor");
    scaling.high_freq_factor = fields_.Positive("high_freq_factor");
    scaling.original_context = fields_.Unsigned("original_max_position_embeddings", 1, kMaxContext);
    if (scaling.high_freq_factor <= scaling.low_freq_factor) {
      fields_.Refuse("high_freq_factor", "is not larger than low_freq_factor");
    }
  }

  void ReadLinear(RopeScaling& scaling) {
    Known({"factor"});
    scaling.kind = Kind::kLinear;
    scaling.factor = fields_.Positive("factor");
  }

  void ReadYarn(RopeConfig& rope) {
    Known({"factor", "original_max_position_embeddings", "attention_factor", "beta_fast",
           "beta_slow", "mscale", "mscale_all_dim", "truncate", "finetuned"});
    RopeScaling& scaling = rope.scaling;
    scaling.kind = Kind::kYarn;
    scaling.factor = fields_.Positive("factor");
    ReadOriginalContext(scaling);
    scaling.beta_fast = fields_.PositiveOr("beta_fast", 32.0);
    scaling.beta_slow = fields_.PositiveOr("beta_slow", 1.0);
    scaling.truncate = fields_.BoolOr("truncate", true);
    const auto mscale = [&](double times) {
      return scaling.factor <= 1 ? 1.0 : 0.1 * times * std::log(scaling.factor) + 1.0;
    };
    double inferred = mscale(1.0);
    if (fields_.Has("mscale") && fields_.Has("mscale_all_dim")) {
      inferred = mscale(fields_.Positive("mscale")) / mscale(fields_.Positive("mscale_all_dim"));
    }
    scaling.attention_factor = fields_.PositiveOr("attention_factor", inferred);
    if (!explicit_original_) return;
    const double context = scaling.factor * scaling.original_context;
    if (context > kMaxContext) {
      fields_.Refuse("factor", Concat("means a context of more than ", kMaxContext, " tokens"));
    } else {
      rope.context = static_cast<uint32_t>(context);
    }
  }

  void ReadLongRope(RopeScaling& scaling) {
    Known({"factor", "original_max_position_embeddings", "attention_factor", "short_factor",
           "long_factor"});
    scaling.kind = Kind::kLongRope;
    ReadOriginalContext(scaling);
    scaling.short_factor = Divisors("short_factor");
    scaling.long_factor = Divisors("long_factor");
    const double original = scaling.original_context;
    scaling.factor = fields_.PositiveOr("factor", max_context_ / original);
    const double inferred = scaling.factor <= 1 || original <= 1
                                ? 1.0
                                : std::sqrt(1 + std::log(scaling.factor) / std::log(original));
    scaling.attention_factor = fields_.PositiveOr("attention_factor", inferred);
  }

  std::vector<double> Divisors(const char* name) {
    std::vector<double> values;
    const bool list = fields_.Has(name) && fields_.Value(name).is_array() &&
                      fields_.Value(name).size() == head_dim_ / 2;
    if (list) {
      for (const json& value : fields_.Value(name)) {
        const double divisor = value.is_number() ? value.get<double>() : 0;
        if (std::isfinite(divisor) && divisor > 0) values.push_back(divisor);
      }
    }
    if (values.size() == head_dim_ / 2) return values;
    const std::string what =
        Concat("is not a list of head_dim / 2 = ", head_dim_ / 2, " positive numbers");
    if (fields_.Has(name)) {
      fields_.Refuse(name, what);
    } else {
      fields_.RefuseFile(Concat("longrope's ", name, " ", what));
    }
    return std::vector<double>(head_dim_ / 2, 1.0);
  }

  const json& config_;
  JsonFields fields_;
  const json& object_;
  const RopeConfig::Defaults& defaults_;
  const uint32_t head_dim_, max_context_;
  bool explicit_original_ = false;
  absl::Status outer_;  // of what is not in the object
};

}  // namespace

std::vector<float> RopeConfig::InverseFrequency(uint32_t head_dim, bool long_rope) const {
  CHECK_EQ(head_dim % 2, 0u);
  std::vector<float> powers(head_dim / 2);
  for (uint32_t i = 0; i < powers.size(); ++i) {
    // A float32 power, rounded once: computed in double.
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    powers[i] = static_cast<float>(std::pow(static_cast<float>(theta), double{exponent}));
  }
  if (scaling.kind == Kind::kYarn) return YarnFrequencies(powers, *this, head_dim);
  const std::vector<double>& divisors = long_rope ? scaling.long_factor : scaling.short_factor;
  std::vector<float> frequencies;
  for (size_t i = 0; i < powers.size(); ++i) {
    float frequency = 1.0f / powers[i];
    if (scaling.kind == Kind::kLlama3) frequency = Llama3Frequency(frequency, scaling);
    if (scaling.kind == Kind::kLinear) frequency /= static_cast<float>(scaling.factor);
    if (scaling.kind == Kind::kLongRope) {
      frequency = 1.0f / (static_cast<float>(divisors[i]) * powers[i]);
    }
    frequencies.push_back(frequency);
  }
  return frequencies;
}

absl::StatusOr<RopeConfig> RopeConfig::Read(const json& config, const std::string& file,
                                            const Defaults& defaults, uint32_t head_dim,
                                            uint32_t max_context) {
  JsonFields fields(config, file);
  RopeConfig rope;
  rope.theta = fields.PositiveOr("rope_theta", defaults.theta);
  // transformers 5 takes the older field where both are there.
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    if (!fields.Has(name)) continue;
    const json& object = fields.Value(name);
    if (!object.is_object()) {
      fields.Refuse(name, "is not an object");
      return fields.status();
    }
    if (object.empty()) continue;
    Reader reader(config, object, file, name, defaults, head_dim, max_context);
    if (absl::Status read = reader.Read(rope); !read.ok()) return read;
    break;
  }
  if (!fields.status().ok()) return fields.status();
  return rope;
}

}  // namespace sparsekv
