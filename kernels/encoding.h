#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace sparsekv {

// How the values of a weight matrix are written. kPlain: in the matrix's own float type. The others
// are codes of fewer bits and scales, and are multiplied with as they are, never expanded whole.
enum class Encoding : uint8_t { kPlain, kInt4, kInt8, kFp8 };

// What codes mean. Constant; what the pointers show outlives every call that names it.
//
// kInt4, kInt8, with place(j) = order ? order[j] : j and g = j / group:
//   w[o, place(j)] = scale(o, g) * (code(o, j) - zero(o, g))
//   Scales have the matrix's type, zero points are bytes, both [panels][groups][kPanelOutputs].
//   Codes lie in panels of 16 outputs, [panels][padded inputs / 8][words][16] of 32 bits: 8 inputs
//   of an output are one word of 4-bit codes, or two words of 8-bit codes for 4 inputs each. The
//   order within a word is that in which code is unpacked: shifted and masked as 16-bit halves, a
//   word gives inputs (0, 1), (2, 3), (4, 5), (6, 7).
//   What pads inputs and outputs has scale 0 or meets an x of 0.
// kFp8: [rows][cols] of float8_e4m3fn; w[o, i] = value * scale(o / block_rows, i / group), scales
//   are float32, [blocks of rows][blocks of inputs].
struct Coding {
  Encoding encoding = Encoding::kPlain;
  uint32_t group = 0;       // inputs that share a scale; integers: cols, or a multiple of 8
  uint32_t block_rows = 0;  // kFp8: outputs that share a scale
  const void* scales = nullptr;
  const uint8_t* zeros = nullptr;   // integers; null: `zero` everywhere
  const uint32_t* order = nullptr;  // integers: [cols], a permutation of the inputs; null: none
  uint8_t zero = 0;
};

inline constexpr uint32_t kPanelOutputs = 16;
inline constexpr uint32_t kUnitInputs = 8;  // inputs of a panel that lie together

constexpr uint32_t CeilDivide(uint32_t a, uint32_t b) { return a / b + (a % b != 0); }

constexpr uint32_t WordsOfUnit(Encoding encoding) { return encoding == Encoding::kInt4 ? 1 : 2; }

// Where in its unit's words the code of input j (of 8) begins: word, bit.
struct CodePlace {
  uint32_t word, shift;
};
constexpr CodePlace PlaceOf(Encoding encoding, uint32_t j) {
  const uint32_t pair = j / 2, high = j % 2 * 16;
  if (encoding == Encoding::kInt4) return {0, high + 4 * pair};
  return {pair / 2, high + pair % 2 * 8};
}

// float8_e4m3fn: 4 bits of exponent (bias 7), 3 of mantissa, no infinities, 0x7F and 0xFF are NaN.
inline float FromE4M3(uint8_t bits) {
  const uint32_t magnitude = bits & 0x7Fu;
  if (magnitude == 0x7F) return std::bit_cast<float>(0x7FC00000u);
  // As a float32 whose exponent is 120 too small, perhaps a subnormal one: the product is exact.
  const float small = std::bit_cast<float>((bits & 0x80u) << 24 | magnitude << 20);
  return small * 0x1p120f;
}

}  // namespace sparsekv
