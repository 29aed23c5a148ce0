#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace sparsekv {

// How a label's values could be stored. Calibration measures them all, by rounding values as they
// would be stored; the label cache itself holds bf16 (kernels/labels.h).
enum class LabelFormat : uint8_t {
  kBf16,
  // Codes of so many bits between the least and the greatest value of a label (one token and KV
  // head), with a step and a least value of float16.
  kInt8,
  kInt4,
  kInt2,
};
inline constexpr LabelFormat kLabelFormats[] = {LabelFormat::kBf16, LabelFormat::kInt8,
                                                LabelFormat::kInt4, LabelFormat::kInt2};

std::string_view Name(LabelFormat format);  // "bf16", "int8", "int4", "int2"

// Of a label of so many channels, its scales included.
size_t LabelBytes(LabelFormat format, uint32_t channels);

// The values of one label as they would read back.
void RoundLabel(LabelFormat format, std::span<float> label);

}  // namespace sparsekv
