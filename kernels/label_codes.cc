#include "kernels/label_codes.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "kernels/half.h"

namespace sparsekv {
namespace {

constexpr float kMostQueryCode = 127;

// NaN fails every comparison.
float Tame(float x) {
  if (x > kMostCoded) return kMostCoded;
  if (x < -kMostCoded) return -kMostCoded;
  return x == x ? x + 0.0f : 0.0f;
}

// To nearest even, the rounding of the environment that no one changes.
float ToCode(float x, float low, float high) { return std::clamp(std::nearbyint(x), low, high); }

}  // namespace

std::string_view Name(LabelFormat format) {
  constexpr std::string_view kNames[] = {"bf16", "int8", "int4", "int2"};
  return kNames[static_cast<size_t>(format)];
}

std::optional<LabelFormat> ParseLabelFormat(std::string_view name) {
  for (LabelFormat format : kLabelFormats) {
    if (name == Name(format)) return format;
  }
  return std::nullopt;
}

CodedLabel CodeLabel(LabelFormat format, std::span<const float> values) {
  CHECK(format != LabelFormat::kBf16);
  CHECK_LE(values.size(), kMaxHeadDim);
  const uint32_t bits = CodeBits(format), in_word = 32 / bits;
  const auto most = static_cast<float>((1u << bits) - 1);
  float low = HUGE_VALF, high = -HUGE_VALF;
  for (float value : values) {
    low = std::min(low, Tame(value));
    high = std::max(high, Tame(value));
  }
  CodedLabel label;
  label.least = ToF16(low);
  label.step = ToF16((high - low) / most);
  const float least = FromF16(label.least), step = FromF16(label.step);
  if (step == 0) return label;
  for (size_t c = 0; c < values.size(); ++c) {
    const float code = ToCode((Tame(values[c]) - least) / step, 0, most);
    label.words[c / in_word] |= static_cast<uint32_t>(code) << (c % in_word * bits);
  }
  return label;
}

CodedQuery CodeQuery(std::span<const float> values) {
  CHECK_LE(values.size(), kMaxHeadDim);
  CodedQuery query;
  float most = 0;
  for (float value : values) most = std::max(most, std::fabs(Tame(value)));
  query.unit = most / kMostQueryCode;
  if (query.unit == 0) return query;
  for (size_t c = 0; c < values.size(); ++c) {
    const float code = ToCode(Tame(values[c]) / query.unit, -kMostQueryCode, kMostQueryCode);
    query.codes[c] = static_cast<int8_t>(code);
    query.sum += query.codes[c];
  }
  return query;
}

void RoundLabel(LabelFormat format, std::span<float> values) {
  if (format == LabelFormat::kBf16) {
    for (float& x : values) x = Rounded(x, DType::kBF16);
    return;
  }
  const CodedLabel label = CodeLabel(format, values);
  const uint32_t bits = CodeBits(format), in_word = 32 / bits;
  for (size_t c = 0; c < values.size(); ++c) {
    const uint32_t code = label.words[c / in_word] >> (c % in_word * bits) & ((1u << bits) - 1);
    values[c] = static_cast<float>(code) * FromF16(label.step) + FromF16(label.least);
  }
}

void RoundQuery(LabelFormat format, std::span<float> values) {
  if (format == LabelFormat::kBf16) return;
  const CodedQuery query = CodeQuery(values);
  for (size_t c = 0; c < values.size(); ++c) values[c] = query.codes[c] * query.unit;
}

}  // namespace sparsekv
