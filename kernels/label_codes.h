#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "base/limits.h"

namespace sparsekv {

// How the numbers of a label (of one token and KV head) are stored.
enum class LabelFormat : uint8_t {
  kBf16 = 0,
  // Codes of so many bits, with a step and a least value of float16 for each label.
  kInt8,
  kInt4,
  kInt2,
};
inline constexpr LabelFormat kLabelFormats[] = {LabelFormat::kBf16, LabelFormat::kInt8,
                                                LabelFormat::kInt4, LabelFormat::kInt2};

std::string_view Name(LabelFormat format);  // "bf16", "int8", "int4", "int2"
std::optional<LabelFormat> ParseLabelFormat(std::string_view name);

// Of a code; 16 for kBf16.
constexpr uint32_t CodeBits(LabelFormat format) { return 16u >> static_cast<uint32_t>(format); }

// Words of 32 bits that hold a label's codes: channel c is in word c / (32 / bits), from bit
// c % (32 / bits) x bits on. What fills up the last word is 0.  REQUIRES: not kBf16.
constexpr uint32_t CodeWords(LabelFormat format, uint32_t channels) {
  return (channels * CodeBits(format) + 31) / 32;
}
inline constexpr uint32_t kMostCodeWords = kMaxHeadDim / 4;

// Of a label of so many channels, its scales included.
constexpr size_t LabelBytes(LabelFormat format, uint32_t channels) {
  return format == LabelFormat::kBf16 ? size_t{2} * channels
                                      : size_t{4} * (1 + CodeWords(format, channels));
}

// Beyond these values are cut off, in labels and in queries that are coded; NaN counts as 0, -0 as
// 0. So every scale, code and score is a number.
inline constexpr float kMostCoded = 65504.0f;  // float16's

// A label: value c is read back as codes(c) x step + least. With the values' least and greatest,
//   step = f16((greatest - least) / (2^bits - 1)),  least = f16(least),
//   code = (value - least) / step, rounded to nearest even, within 0 .. 2^bits - 1; 0 where step is
// 0. Every operation is in float32 and rounded. Labels and queries have the same codes everywhere.
struct CodedLabel {
  uint16_t step = 0, least = 0;  // float16
  uint32_t words[kMostCodeWords] = {};
};
CodedLabel CodeLabel(LabelFormat format, std::span<const float> values);

// A query head's values on the label channels, as it asks labels that are coded: value c is taken
// for codes(c) x unit.
//   unit = greatest |value| / 127,  code = value / unit, rounded to nearest even, within -127 ..
//   127;
// all 0 where unit is 0. Its error is an eighth of what int4 makes of the labels.
struct CodedQuery {
  float unit = 0;
  int32_t sum = 0;  // of the codes
  int8_t codes[kMaxHeadDim] = {};
};
CodedQuery CodeQuery(std::span<const float> values);

// The score of a coded label by a coded query, `dot` being the sum over the channels of the
// products of their codes: an integer below 2^24, whatever the order of its sum. Three products and
// a sum, each rounded.
inline float CodedScore(float unit, int32_t query_sum, float step, float least, int32_t dot) {
  const float by_steps = step * static_cast<float>(dot);
  const float by_least = least * static_cast<float>(query_sum);
  return unit * (by_steps + by_least);
}

// The values as they would read back: of a label in any format, of a query that asks such labels
// (kBf16: as they are).
void RoundLabel(LabelFormat format, std::span<float> values);
void RoundQuery(LabelFormat format, std::span<float> values);

}  // namespace sparsekv
