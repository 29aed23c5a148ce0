// The arithmetic of one attention tile: keys transposed and values widened into float32 scratch,
// then two small matrix products with a softmax step between them. Compiled once per instruction
// set.
#include <hwy/highway.h>

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/attention.h"
#include "kernels/cpu/line_fetch.h"
#include "kernels/cpu/vector-inl.h"

#if defined(SPARSEKV_KERNELS_CPU_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SPARSEKV_KERNELS_CPU_ATTENTION_INL_H_
#undef SPARSEKV_KERNELS_CPU_ATTENTION_INL_H_
#else
#define SPARSEKV_KERNELS_CPU_ATTENTION_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace sparsekv::cpu::HWY_NAMESPACE {
namespace {

// A vector whose 16-byte block b holds the 16 bytes at rows[b * kStep] + offset.
template <size_t kStep, class D, typename T = hn::TFromD<D>>
HWY_INLINE hn::Vec<D> LoadBlocks(D d, const std::byte* const* rows, size_t offset) {
  constexpr size_t kBlocks = hn::MaxLanes(D()) * sizeof(T) / 16;
  if constexpr (kBlocks == 1) {
    return hn::LoadU(d, reinterpret_cast<const T*>(rows[0] + offset));
  } else {
    const hn::Half<D> half;
    const auto lower = LoadBlocks<kStep>(half, rows, offset);
    const auto upper = LoadBlocks<kStep>(half, rows + kStep * kBlocks / 2, offset);
    return hn::Combine(d, upper, lower);
  }
}

using DU = hn::ScalableTag<uint32_t>;
using VU = hn::Vec<DU>;

// The values of a row's words (32 bits) in order: one of float32, or two of 16 bits.
template <typename T>
inline constexpr size_t kWordValues = sizeof(uint32_t) / sizeof(T);

HWY_INLINE void WidenWords(VU words, const float*, VF* values) {
  values[0] = hn::BitCast(DF(), words);
}
HWY_INLINE void WidenWords(VU words, const hwy::bfloat16_t*, VF* values) {
  values[0] = hn::BitCast(DF(), hn::ShiftLeft<16>(words));
  values[1] = hn::BitCast(DF(), hn::And(words, hn::Set(DU(), 0xFFFF0000u)));
}
HWY_INLINE void WidenWords(VU words, const hwy::float16_t*, VF* values) {
  const hn::RebindToSigned<DF> di;
  const hn::Rebind<uint16_t, DF> du16;
  const hn::Rebind<hwy::float16_t, DF> df16;
  const VU lower = hn::And(words, hn::Set(DU(), 0xFFFFu));
  const VU upper = hn::ShiftRight<16>(words);
  values[0] = hn::PromoteTo(DF(), hn::BitCast(df16, hn::DemoteTo(du16, hn::BitCast(di, lower))));
  values[1] = hn::PromoteTo(DF(), hn::BitCast(df16, hn::DemoteTo(du16, hn::BitCast(di, upper))));
}

// Words per block of 16 bytes, and rows that give one block each.
constexpr size_t kSquare = 4;

// v[w] = word `first_word` + w of kLanes rows, w < kSquare.
HWY_INLINE void TransposeWords(const std::byte* const* rows, size_t first_word, VU* v) {
  const DU d;
#pragma GCC unroll 4
  for (size_t i = 0; i < kSquare; ++i) {
    v[i] = LoadBlocks<kSquare>(d, rows + i, first_word * sizeof(uint32_t));
  }
  // Interleaving word i with word i + half, twice, transposes each block.
#pragma GCC unroll 2
  for (size_t level = 0; level < 2; ++level) {
    const VU even_lower = hn::InterleaveLower(d, v[0], v[2]);
    const VU even_upper = hn::InterleaveUpper(d, v[0], v[2]);
    const VU odd_lower = hn::InterleaveLower(d, v[1], v[3]);
    const VU odd_upper = hn::InterleaveUpper(d, v[1], v[3]);
    v[0] = even_lower;
    v[1] = even_upper;
    v[2] = odd_lower;
    v[3] = odd_upper;
  }
}

// keys[c][t] = element c of row t, for kAttendTile rows, as float32.
template <class Fetch>
HWY_NOINLINE void TransposeKeys(const std::byte* const* rows, size_t head_dim, DType dtype,
                                Fetch& fetch, float* HWY_RESTRICT keys) {
  WithType(nullptr, dtype, [&](const auto* null) {
    constexpr size_t kValues = kWordValues<std::decay_t<decltype(*null)>>;
    for (size_t t = 0; t < kAttendTile; t += kLanes) {
      for (size_t word = 0; word < head_dim / kValues; word += kSquare) {
        fetch.Step(word / kSquare, kLanes * kSquare * sizeof(uint32_t));  // half of the tile in all
        VU words[kSquare];
        TransposeWords(rows + t, word, words);
#pragma GCC unroll 4
        for (size_t w = 0; w < kSquare; ++w) {
          VF values[kValues];
          WidenWords(words[w], null, values);
#pragma GCC unroll 2
          for (size_t i = 0; i < kValues; ++i) {
            hn::StoreU(values[i], DF(), keys + ((word + w) * kValues + i) * kAttendTile + t);
          }
        }
      }
    }
  });
}

// The order in which the channels of values and of their sums are kept: as they are, but for
// bfloat16 the even ones of 2 * kLanes, then the odd ones, as long as there are so many; a shift
// and a mask widen these.
template <typename T>
inline constexpr bool kInPairs = false;
template <>
inline constexpr bool kInPairs<hwy::bfloat16_t> = true;

// kVectors vectors of values in that order; a single one may have `valid` < kLanes values.
template <size_t kVectors, typename T>
HWY_INLINE void LoadValues(const T* from, size_t valid, VF* values) {
  if constexpr (kVectors == 1) {
    values[0] = valid < kLanes ? LoadFloatsTail(from, valid) : LoadFloats(from);
  } else if constexpr (kInPairs<T>) {
    static_assert(kVectors % 2 == 0);
#pragma GCC unroll 2
    for (size_t v = 0; v < kVectors; v += 2) {
      WidenWords(hn::LoadU(DU(), reinterpret_cast<const uint32_t*>(from + v * kLanes)), from,
                 values + v);
    }
  } else {
#pragma GCC unroll 4
    for (size_t v = 0; v < kVectors; ++v) values[v] = LoadFloats(from + v * kLanes);
  }
}

// values[t][c] for the first `count` rows, with zeros from head_dim to `padded`.
template <class Fetch>
HWY_NOINLINE void WidenValues(const std::byte* const* rows, size_t count, size_t head_dim,
                              DType dtype, size_t padded, Fetch& fetch, float* values) {
  WithType(nullptr, dtype, [&](const auto* null) {
    using T = decltype(null);
    const size_t half_row = head_dim * sizeof(*null);
    for (size_t t = 0; t < count; ++t) {
      fetch.Part(t, kAttendTile, kAttendTile * half_row);
      const T from = reinterpret_cast<T>(rows[t]) + head_dim;
      float* to = values + t * padded;
      size_t c = 0;
      for (; c + 2 * kLanes <= head_dim; c += 2 * kLanes) {
        VF two[2];
        LoadValues<2>(from + c, kLanes, two);
        hn::StoreU(two[0], DF(), to + c);
        hn::StoreU(two[1], DF(), to + c + kLanes);
      }
      WidenRow(from + c, head_dim - c, padded - c, to + c);
    }
  });
}

// c[r][..] = factors[r] * c[r][..] + sum over k of a[r][k] * b[k][..], k in order; without factors
// c starts at zero. Widths are in vectors.
struct Product {
  const float* a = nullptr;
  size_t a_stride = 0;
  const float* b = nullptr;
  size_t b_stride = 0;
  size_t depth = 0;
  float* c = nullptr;
  size_t c_stride = 0;
  const float* factors = nullptr;
};

template <size_t kRows, size_t kVectors>
HWY_INLINE void MultiplyTile(const Product& p, size_t row, size_t column) {
  const DF d;
  const float* HWY_RESTRICT a = p.a + row * p.a_stride;
  const float* HWY_RESTRICT b = p.b + column;
  float* HWY_RESTRICT c = p.c + row * p.c_stride + column;
  VF sums[kRows][kVectors];
#pragma GCC unroll 8
  for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (size_t v = 0; v < kVectors; ++v) {
      sums[r][v] = p.factors == nullptr ? hn::Zero(d)
                                        : hn::Mul(hn::Set(d, p.factors[row + r]),
                                                  hn::LoadU(d, c + r * p.c_stride + v * kLanes));
    }
  }
  for (size_t k = 0; k < p.depth; ++k) {
    VF bs[kVectors];
#pragma GCC unroll 4
    for (size_t v = 0; v < kVectors; ++v) bs[v] = hn::LoadU(d, b + k * p.b_stride + v * kLanes);
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) {
      const VF as = hn::Set(d, a[r * p.a_stride + k]);
#pragma GCC unroll 4
      for (size_t v = 0; v < kVectors; ++v) sums[r][v] = hn::MulAdd(as, bs[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (size_t v = 0; v < kVectors; ++v) {
      hn::StoreU(sums[r][v], d, c + r * p.c_stride + v * kLanes);
    }
  }
}

template <size_t kRows>
HWY_NOINLINE void MultiplyRows(const Product& p, size_t row, size_t width) {
  constexpr size_t kVectors = kManyRegisters ? 4 : 2;
  size_t column = 0;
  for (; column + kVectors * kLanes <= width; column += kVectors * kLanes) {
    MultiplyTile<kRows, kVectors>(p, row, column);
  }
  for (; column < width; column += kLanes) MultiplyTile<kRows, 1>(p, row, column);
}

// `width` is a multiple of kLanes.
HWY_INLINE void Multiply(const Product& p, size_t rows, size_t width) {
  size_t row = 0;
  for (; row + 6 <= rows; row += 6) MultiplyRows<6>(p, row, width);
  if (row + 4 <= rows) MultiplyRows<4>(p, row, width), row += 4;
  if (row + 2 <= rows) MultiplyRows<2>(p, row, width), row += 2;
  if (row < rows) MultiplyRows<1>(p, row, width);
}

// Scales one row of dot products to scores, minus infinity outside of [from, to). Returns the
// highest of them and of `maximum`, in all lanes.
HWY_INLINE VF ScaleScores(float* HWY_RESTRICT row, size_t from, size_t to, float scale,
                          float maximum) {
  const DF d;
  const VF scales = hn::Set(d, scale);
  VF highest = hn::Set(d, maximum);
#pragma GCC unroll 16
  for (size_t i = 0; i < kAttendTile; i += kLanes) {
    VF scores = hn::Mul(hn::LoadU(d, row + i), scales);
    if (i + kLanes > to) {
      const auto valid = hn::FirstN(d, to > i ? to - i : 0);
      scores = hn::IfThenElse(valid, scores, hn::Set(d, -HUGE_VALF));
    }
    if (from > i) {
      const auto outside = hn::FirstN(d, HWY_MIN(from - i, kLanes));
      scores = hn::IfThenElse(outside, hn::Set(d, -HUGE_VALF), scores);
    }
    highest = hn::Max(highest, scores);
    hn::StoreU(scores, d, row + i);
  }
  return hn::MaxOfLanes(d, highest);
}

// Turns scores into weights exp(score - highest), and updates the running maximum and sum. Returns
// the factor by which the row's older sums shrink.
HWY_INLINE float WeighScores(float* HWY_RESTRICT row, VF highest, float* maximum, float* sum) {
  const DF d;
  VF total = hn::Zero(d);
#pragma GCC unroll 4
  for (size_t i = 0; i < kAttendTile; i += kLanes) {
    const VF weights = Exp(hn::Sub(hn::LoadU(d, row + i), highest));
    hn::StoreU(weights, d, row + i);
    total = hn::Add(total, weights);
  }
  const float top = hn::GetLane(highest);
  const float factor = top == *maximum ? 1.0f : Exp(*maximum - top);  // Exp(0) is 1: spared mostly
  *maximum = top;
  *sum = *sum * factor + Sum(total);
  return factor;
}

}  // namespace
}  // namespace sparsekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard per target
