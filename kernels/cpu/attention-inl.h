// The arithmetic of one attention tile: keys transposed and values widened into float32 scratch,
// then two small matrix products with a softmax step between them. Compiled once per instruction
// set.
#include <hwy/highway.h>

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/attention.h"
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

HWY_INLINE void StoreWidened(hn::Vec<DF> v, DType, float* to) { hn::StoreU(v, DF(), to); }
HWY_INLINE void StoreWidened(hn::Vec<hn::ScalableTag<uint16_t>> v, DType dtype, float* to) {
  const hn::Half<hn::ScalableTag<uint16_t>> half;
  const hn::Rebind<hwy::bfloat16_t, DF> bf16;
  const hn::Rebind<hwy::float16_t, DF> f16;
  const auto lower = hn::LowerHalf(half, v);
  const auto upper = hn::UpperHalf(half, v);
  if (dtype == DType::kBF16) {
    hn::StoreU(hn::PromoteTo(DF(), hn::BitCast(bf16, lower)), DF(), to);
    hn::StoreU(hn::PromoteTo(DF(), hn::BitCast(bf16, upper)), DF(), to + kLanes);
  } else {
    hn::StoreU(hn::PromoteTo(DF(), hn::BitCast(f16, lower)), DF(), to);
    hn::StoreU(hn::PromoteTo(DF(), hn::BitCast(f16, upper)), DF(), to + kLanes);
  }
}

constexpr size_t kLine = 64;

// Into the L2 cache: a tile is as large as the L1 cache.
HWY_INLINE void PrefetchLine(const std::byte* from) { __builtin_prefetch(from, 0, 2); }

// keys[c][t] = element c of row t, for kAttendTile rows. T has the size of a row's elements.
// Meanwhile fetches the keys of the `next` tile, a few lines at a time: rows lie too far apart for
// the hardware to guess.
template <typename T>
HWY_INLINE void TransposeKeysOf(const std::byte* const* rows, const std::byte* const* next,
                                size_t head_dim, DType dtype, float* HWY_RESTRICT keys) {
  const hn::ScalableTag<T> d;
  constexpr size_t kTokens = HWY_LANES(T);    // of a vector
  constexpr size_t kSquare = 16 / sizeof(T);  // channels and tokens of a 16-byte block
  for (size_t t = 0; t < kAttendTile; t += kTokens) {
    for (size_t c = 0; c < head_dim; c += kSquare) {
      // Each of the steps along a cache line fetches that line for its share of the rows.
      constexpr size_t kShare = kTokens * 16 / kLine;
      const size_t share = c * sizeof(T) % kLine / 16;
#pragma GCC unroll 8
      for (size_t i = 0; i < kShare; ++i) {
        PrefetchLine(next[t + share * kShare + i] + c * sizeof(T) / kLine * kLine);
      }
      hn::Vec<decltype(d)> v[kSquare];
#pragma GCC unroll 8
      for (size_t i = 0; i < kSquare; ++i) {
        v[i] = LoadBlocks<kSquare>(d, rows + t + i, c * sizeof(T));
      }
      // Interleaving element i with element i + half, log2(kSquare) times, transposes each block.
#pragma GCC unroll 4
      for (size_t level = 1; level < kSquare; level *= 2) {
        hn::Vec<decltype(d)> w[kSquare];
#pragma GCC unroll 4
        for (size_t i = 0; i < kSquare / 2; ++i) {
          w[2 * i] = hn::InterleaveLower(d, v[i], v[i + kSquare / 2]);
          w[2 * i + 1] = hn::InterleaveUpper(d, v[i], v[i + kSquare / 2]);
        }
#pragma GCC unroll 8
        for (size_t i = 0; i < kSquare; ++i) v[i] = w[i];
      }
#pragma GCC unroll 8
      for (size_t i = 0; i < kSquare; ++i) {
        StoreWidened(v[i], dtype, keys + (c + i) * kAttendTile + t);
      }
    }
  }
}

HWY_NOINLINE void TransposeKeys(const std::byte* const* rows, const std::byte* const* next,
                                size_t head_dim, DType dtype, float* keys) {
  if (dtype == DType::kF32) {
    TransposeKeysOf<float>(rows, next, head_dim, dtype, keys);
  } else {
    TransposeKeysOf<uint16_t>(rows, next, head_dim, dtype, keys);
  }
}

// values[t][c] for the first `count` rows, with zeros from head_dim to `padded`. Fetches the values
// of the `next` tile.
HWY_NOINLINE void WidenValues(const std::byte* const* rows, const std::byte* const* next,
                              size_t count, size_t head_dim, DType dtype, size_t padded,
                              float* values) {
  WithType(nullptr, dtype, [&](const auto* null) {
    using T = decltype(null);
    const size_t half_row = head_dim * sizeof(*null);
    for (size_t t = 0; t < count; ++t) {
      for (size_t at = 0; at < half_row; at += kLine) PrefetchLine(next[t] + half_row + at);
      WidenRow(reinterpret_cast<T>(rows[t]) + head_dim, head_dim, padded, values + t * padded);
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

// Turns one row of dot products into weights exp(scale * dot - new maximum), zero from `count` on,
// and updates the running maximum and sum. Returns the factor by which the row's older sums shrink.
HWY_INLINE float SoftmaxStep(float* HWY_RESTRICT row, size_t count, float scale, float* maximum,
                             float* sum) {
  const DF d;
  constexpr size_t kVectors = kAttendTile / kLanes;
  const VF scales = hn::Set(d, scale);
  VF scores[kVectors];
  VF highest = hn::Set(d, *maximum);
#pragma GCC unroll 16
  for (size_t i = 0; i < kVectors; ++i) {
    scores[i] = hn::Mul(hn::LoadU(d, row + i * kLanes), scales);
    if ((i + 1) * kLanes > count) {
      const auto valid = hn::FirstN(d, count > i * kLanes ? count - i * kLanes : 0);
      scores[i] = hn::IfThenElse(valid, scores[i], hn::Set(d, -HUGE_VALF));
    }
    highest = hn::Max(highest, scores[i]);
  }
  highest = hn::MaxOfLanes(d, highest);
  VF total = hn::Zero(d);
#pragma GCC unroll 16
  for (size_t i = 0; i < kVectors; ++i) {
    const VF weights = Exp(hn::Sub(scores[i], highest));
    hn::StoreU(weights, d, row + i * kLanes);
    total = hn::Add(total, weights);
  }
  const float factor = Exp(*maximum - hn::GetLane(highest));
  *maximum = hn::GetLane(highest);
  *sum = *sum * factor + Sum(total);
  return factor;
}

}  // namespace
}  // namespace sparsekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard per target
