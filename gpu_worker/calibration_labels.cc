#include "gpu_worker/calibration_labels.h"

#include <algorithm>
#include <cmath>

#include "kernels/half.h"

namespace sparsekv {

namespace {

constexpr size_t kStepAndLeastBytes = 4;

uint32_t Bits(LabelFormat format) {
  constexpr uint32_t kBits[] = {16, 8, 4, 2};
  return kBits[static_cast<size_t>(format)];
}

}  // namespace

std::string_view Name(LabelFormat format) {
  constexpr std::string_view kNames[] = {"bf16", "int8", "int4", "int2"};
  return kNames[static_cast<size_t>(format)];
}

size_t LabelBytes(LabelFormat format, uint32_t channels) {
  const size_t codes = (size_t{channels} * Bits(format) + 7) / 8;
  return format == LabelFormat::kBf16 ? codes : codes + kStepAndLeastBytes;
}

void RoundLabel(LabelFormat format, std::span<float> label) {
  if (format == LabelFormat::kBf16) {
    for (float& x : label) x = FromBf16(ToBf16(x));
    return;
  }
  const auto [low, high] = std::ranges::minmax(label);
  const auto levels = static_cast<float>((1u << Bits(format)) - 1);
  const float least = Rounded(low, DType::kF16);
  const float step = Rounded((high - low) / levels, DType::kF16);
  for (float& x : label) {
    x = step > 0 ? std::clamp(std::round((x - least) / step), 0.0f, levels) * step + least : least;
  }
}

}  // namespace sparsekv
