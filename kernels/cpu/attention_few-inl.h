// An attention tile for few query rows, as in decode: keys stay in their own type until they are
// multiplied, values are multiplied as they are loaded. Every sum runs in the order of the matrix
// products in attention-inl.h, so the bits are the same.
#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/attention-inl.h"

#if defined(SPARSEKV_KERNELS_CPU_ATTENTION_FEW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SPARSEKV_KERNELS_CPU_ATTENTION_FEW_INL_H_
#undef SPARSEKV_KERNELS_CPU_ATTENTION_FEW_INL_H_
#else
#define SPARSEKV_KERNELS_CPU_ATTENTION_FEW_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace sparsekv::cpu::HWY_NAMESPACE {
namespace {

// Calls function.operator()<n>(row) for rows [row, row + n), over [0, rows).
template <typename Function>
HWY_INLINE void ByFewRows(size_t rows, const Function& function) {
  size_t row = 0;
  for (; row + 4 <= rows; row += 4) function.template operator()<4>(row);
  switch (rows - row) {
    case 3:
      return function.template operator()<3>(row);
    case 2:
      return function.template operator()<2>(row);
    case 1:
      return function.template operator()<1>(row);
  }
}

// Keys that are multiplied together: their words, transposed, stay in the L1 cache.
constexpr size_t kStripVectors = 2;
constexpr size_t kStripKeys = kStripVectors * kLanes;
static_assert(kAttendTile % kStripKeys == 0);

// Words of so many keys that are read from burst to burst, where half as much is fetched.
template <class Fetch>
constexpr size_t FetchedWords(size_t keys) {
  return 2 * Fetch::kBurst / (keys * sizeof(uint32_t));
}

// words[w][t] = word w of row t, for the rows of a strip. Fetches a quarter of the next tile over
// the strips of a tile, as DotStrip does.
template <class Fetch>
HWY_NOINLINE void TransposeStrip(const std::byte* const* HWY_RESTRICT rows, size_t count,
                                 Fetch& all_fetch, uint32_t* HWY_RESTRICT words) {
  Fetch fetch = all_fetch;
  for (size_t v = 0; v < kStripVectors; ++v) {
    const std::byte* own[kLanes];  // in registers
#pragma GCC unroll 16
    for (size_t i = 0; i < kLanes; ++i) own[i] = rows[v * kLanes + i];
    constexpr size_t kWords = FetchedWords<Fetch>(kLanes);
    static_assert(kWords % kSquare == 0);
    for (size_t word = 0; word < count;) {
      fetch.Burst();
      const size_t end = HWY_MIN(word + kWords, count);
#pragma GCC unroll 2
      for (; word < end; word += kSquare) {
        VU square[kSquare];
        TransposeWords(own, word, square);
#pragma GCC unroll 4
        for (size_t w = 0; w < kSquare; ++w) {
          hn::Store(square[w], DU(), words + (word + w) * kStripKeys + v * kLanes);
        }
      }
    }
  }
  all_fetch = fetch;
}

// scores[r][t] = q[r] . key t of the strip, from TransposeStrip's words.
template <size_t kRows, typename T, class Fetch>
HWY_INLINE void DotStrip(const float* HWY_RESTRICT q, size_t head_dim,
                         const uint32_t* HWY_RESTRICT words, const T* null, Fetch& all_fetch,
                         float* HWY_RESTRICT scores) {
  constexpr size_t kValues = kWordValues<T>;
  Fetch fetch = all_fetch;
  VF sums[kRows][kStripVectors];
#pragma GCC unroll 4
  for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (size_t v = 0; v < kStripVectors; ++v) sums[r][v] = hn::Zero(DF());
  }
  const float* HWY_RESTRICT end = q + head_dim;
  constexpr size_t kWords = FetchedWords<Fetch>(kStripKeys);
  while (q != end) {
    fetch.Burst();
    const float* HWY_RESTRICT burst_end = HWY_MIN(q + kWords * kValues, end);
#pragma GCC unroll 4
    for (; q != burst_end; words += kStripKeys, q += kValues) {
      VF keys[kStripVectors][kValues];
#pragma GCC unroll 2
      for (size_t v = 0; v < kStripVectors; ++v) {
        WidenWords(hn::LoadU(DU(), words + v * kLanes), null, keys[v]);
      }
#pragma GCC unroll 2
      for (size_t i = 0; i < kValues; ++i) {
#pragma GCC unroll 4
        for (size_t r = 0; r < kRows; ++r) {
          const VF qs = hn::Set(DF(), q[r * head_dim + i]);
#pragma GCC unroll 2
          for (size_t v = 0; v < kStripVectors; ++v) {
            sums[r][v] = hn::MulAdd(qs, keys[v][i], sums[r][v]);
          }
        }
      }
    }
  }
  all_fetch = fetch;
#pragma GCC unroll 4
  for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (size_t v = 0; v < kStripVectors; ++v) {
      hn::StoreU(sums[r][v], DF(), scores + r * kAttendTile + v * kLanes);
    }
  }
}

// scores[r][t] = q[r] . key t, for kAttendTile keys. `words` is scratch of head_dim * kStripKeys.
template <class Fetch>
HWY_NOINLINE void DotFew(const std::byte* const* tile, const float* q, size_t rows, size_t head_dim,
                         DType dtype, Fetch& fetch, uint32_t* words, float* scores) {
  for (size_t t = 0; t < kAttendTile; t += kStripKeys) {
    TransposeStrip(tile + t, head_dim * SizeOf(dtype) / sizeof(uint32_t), fetch, words);
    WithType(nullptr, dtype, [&](const auto* null) {
      ByFewRows(rows, [&]<size_t kRows>(size_t row) {
        DotStrip<kRows>(q + row * head_dim, head_dim, words, null, fetch,
                        scores + row * kAttendTile + t);
      });
    });
  }
}

// What AddValuesFew works on. Rows of weights are kAttendTile apart, rows of sums `padded`.
struct FewSums {
  const std::byte* const* tile = nullptr;
  size_t count = 0;  // entries of the tile
  size_t head_dim = 0;
  const float* weights = nullptr;
  const float* factors = nullptr;
  float* sums = nullptr;
  size_t padded = 0;
};

// sums[r][c..] = factors[r] * sums[r][c..] + sum over t of weights[r][t] * value t [c..], for
// kVectors vectors of channels from `column` on (LoadValues).
template <size_t kRows, size_t kVectors, typename T, class Fetch>
HWY_INLINE void AddColumn(const FewSums& job, size_t column, size_t valid, const T*,
                          Fetch& all_fetch) {
  const DF d;
  Fetch fetch = all_fetch;
  const size_t offset = (job.head_dim + column) * sizeof(T);
  VF sums[kRows][kVectors];
#pragma GCC unroll 4
  for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (size_t v = 0; v < kVectors; ++v) {
      const float* from = job.sums + r * job.padded + column + v * kLanes;
      sums[r][v] = hn::Mul(hn::Set(d, job.factors[r]), hn::LoadU(d, from));
    }
  }
  const auto add = [&](size_t t) HWY_ATTR {
    VF values[kVectors];
    LoadValues<kVectors>(reinterpret_cast<const T*>(job.tile[t] + offset), valid, values);
#pragma GCC unroll 4
    for (size_t r = 0; r < kRows; ++r) {
      const VF weights = hn::Set(d, job.weights[r * kAttendTile + t]);
#pragma GCC unroll 4
      for (size_t v = 0; v < kVectors; ++v) {
        sums[r][v] = hn::MulAdd(weights, values[v], sums[r][v]);
      }
    }
  };
  // As many lines as are read, which is half of a tile over all columns.
  constexpr size_t kBytes = kVectors * kLanes * sizeof(T);
  constexpr size_t kStep = HWY_MIN(16, HWY_MAX(1, Fetch::kBurst / kBytes));
  size_t t = 0;
  for (; t + kStep <= job.count; t += kStep) {
    fetch.Step(t / kStep, kStep * kBytes);
#pragma GCC unroll 4
    for (size_t i = 0; i < kStep; ++i) add(t + i);
  }
  for (; t < job.count; ++t) add(t);
  all_fetch = fetch;
#pragma GCC unroll 4
  for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (size_t v = 0; v < kVectors; ++v) {
      hn::StoreU(sums[r][v], d, job.sums + r * job.padded + column + v * kLanes);
    }
  }
}

// All channels of `rows` rows.
template <class Fetch>
HWY_NOINLINE void AddValuesFew(const FewSums& all, size_t rows, DType dtype, Fetch& fetch) {
  constexpr size_t kVectors = kManyRegisters ? 4 : 2;
  WithType(nullptr, dtype, [&](const auto* null) {
    ByFewRows(rows, [&]<size_t kRows>(size_t row) {
      FewSums job = all;
      job.weights += row * kAttendTile;
      job.factors += row;
      job.sums += row * job.padded;
      size_t column = 0;
      for (; column + kVectors * kLanes <= job.head_dim; column += kVectors * kLanes) {
        AddColumn<kRows, kVectors>(job, column, kLanes, null, fetch);
      }
      for (; column + 2 * kLanes <= job.head_dim; column += 2 * kLanes) {
        AddColumn<kRows, 2>(job, column, kLanes, null, fetch);
      }
      for (; column < job.head_dim; column += kLanes) {
        AddColumn<kRows, 1>(job, column, HWY_MIN(kLanes, job.head_dim - column), null, fetch);
      }
    });
  });
}

}  // namespace
}  // namespace sparsekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard per target
