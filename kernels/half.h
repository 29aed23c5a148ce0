#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/dtype.h"

namespace sparsekv {

// The 16-bit float types as bit patterns, one value at a time. Rounding is to nearest, ties to
// even; NaN stays NaN. This is what "rounded to the type" means on every backend.

inline float FromBf16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

inline uint16_t ToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

inline float FromF16(uint16_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 31u;
  const uint32_t mantissa = bits & 0x3FFu;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24 is exact in float32
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
  }
  const uint32_t wide = exponent == 31 ? 255u : exponent + 112u;
  return std::bit_cast<float>(sign | (wide << 23) | (mantissa << 13));
}

inline uint16_t ToF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  uint32_t half;
  if (magnitude > 0x7F800000u) {
    half = 0x7E00u | ((magnitude >> 13) & 0x3FFu);
  } else if (magnitude >= 0x47800000u) {  // 2^16 and above
    half = 0x7C00u;
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14 the result is subnormal: its unit 2^-24 is the last place of floats in [0.5, 1),
    // so adding 0.5 lets the hardware round.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    half = std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(0.5f);
  } else {  // a carry out of the mantissa moves into the exponent, up to infinity
    half = (magnitude + 0xFFFu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  }
  return static_cast<uint16_t>(sign | half);
}

// Element `index` of an array of `dtype`.
inline float LoadValue(const void* base, size_t index, DType dtype) {
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, static_cast<const char*>(base) + 4 * index, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, static_cast<const char*>(base) + 2 * index, 2);
  return dtype == DType::kF16 ? FromF16(bits) : FromBf16(bits);
}

inline void StoreValue(void* base, size_t index, DType dtype, float value) {
  if (dtype == DType::kF32) {
    std::memcpy(static_cast<char*>(base) + 4 * index, &value, 4);
    return;
  }
  const uint16_t bits = dtype == DType::kF16 ? ToF16(value) : ToBf16(value);
  std::memcpy(static_cast<char*>(base) + 2 * index, &bits, 2);
}

// `value` as it reads back from an array of `dtype`.
inline float Rounded(float value, DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return value;
    case DType::kF16:
      return FromF16(ToF16(value));
    case DType::kBF16:
      return FromBf16(ToBf16(value));
  }
  return value;
}

}  // namespace sparsekv
