#pragma once

#include <bit>
#include <cstdint>

namespace sparsekv {

// A query's value as it is multiplied with labels (labels.h): rounded to nearest, ties to even, to
// 16 significant bits, twice a bf16's. So its product with a label of bf16 is exact in float32.
constexpr float LabelQuery(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7F800000u) == 0x7F800000u) return value;  // NaN and the infinities
  return std::bit_cast<float>((bits + 0x7Fu + ((bits >> 8) & 1u)) & ~0xFFu);
}

}  // namespace sparsekv
