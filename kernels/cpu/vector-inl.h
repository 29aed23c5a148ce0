// SIMD vocabulary of the CPU backend: loads that widen to float32, exp, fixed reductions. Compiled
// once per instruction set.
#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

#if defined(SPARSEKV_KERNELS_CPU_VECTOR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SPARSEKV_KERNELS_CPU_VECTOR_INL_H_
#undef SPARSEKV_KERNELS_CPU_VECTOR_INL_H_
#else
#define SPARSEKV_KERNELS_CPU_VECTOR_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace sparsekv::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using VF = hn::Vec<DF>;
inline constexpr size_t kLanes = HWY_LANES(float);
static_assert(kLanes >= 4, "the scalar target lacks operations that are used: see CMakeLists.txt");
// Enough registers for a tile of 24 accumulators, or of 12.
inline constexpr bool kManyRegisters = HWY_TARGET == HWY_AVX3;

inline size_t RoundUp(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// kLanes consecutive values as float32, from any address that the element type may have.
HWY_INLINE VF LoadFloats(const float* from) { return hn::LoadU(DF(), from); }
HWY_INLINE VF LoadFloats(const hwy::bfloat16_t* from) {
  const hn::Rebind<hwy::bfloat16_t, DF> d16;
  return hn::PromoteTo(DF(), hn::LoadU(d16, from));
}
HWY_INLINE VF LoadFloats(const hwy::float16_t* from) {
  const hn::Rebind<hwy::float16_t, DF> d16;
  return hn::PromoteTo(DF(), hn::LoadU(d16, from));
}

// The `count` < kLanes values at `from`, zeros in the lanes above. Reads nothing beyond them.
template <typename T>
HWY_INLINE VF LoadFloatsTail(const T* from, size_t count) {
  HWY_ALIGN T padded[kLanes] = {};
  for (size_t i = 0; i < count; ++i) padded[i] = from[i];
  return LoadFloats(padded);
}

// Writes `count` values from `from` as float32, then zeros up to `padded` (a multiple of kLanes).
template <typename T>
HWY_INLINE void WidenRow(const T* HWY_RESTRICT from, size_t count, size_t padded,
                         float* HWY_RESTRICT to) {
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) hn::StoreU(LoadFloats(from + i), DF(), to + i);
  if (i < count) {
    hn::StoreU(LoadFloatsTail(from + i, count - i), DF(), to + i);
    i += kLanes;
  }
  for (; i < padded; i += kLanes) hn::StoreU(hn::Zero(DF()), DF(), to + i);
}

// Calls function(pointer of the element type) for a type-erased array.
template <typename Function>
HWY_INLINE void WithType(const void* data, DType dtype, const Function& function) {
  switch (dtype) {
    case DType::kF32:
      return function(static_cast<const float*>(data));
    case DType::kF16:
      return function(static_cast<const hwy::float16_t*>(data));
    case DType::kBF16:
      return function(static_cast<const hwy::bfloat16_t*>(data));
  }
}

// e^x, relative error below 2e-7. Below -87.3 (where the result would be subnormal) exactly 0,
// above 88.3 the value at 88.3.
HWY_INLINE VF Exp(VF x) {
  const DF d;
  const hn::RebindToSigned<DF> di;
  const auto representable = hn::Ge(x, hn::Set(d, -87.3f));
  x = hn::Min(hn::Max(x, hn::Set(d, -87.3f)), hn::Set(d, 88.3f));
  // x = n ln 2 + r with |r| <= ln 2 / 2. The first part of ln 2 has few bits: n times it is exact.
  const auto n = hn::NearestInt(hn::Mul(x, hn::Set(d, 1.44269504f)));
  const VF nf = hn::ConvertTo(d, n);
  VF r = hn::NegMulAdd(nf, hn::Set(d, 0.693359375f), x);
  r = hn::NegMulAdd(nf, hn::Set(d, -2.12194440e-4f), r);
  // Taylor's series to r^7 / 7!; the rest is below 6e-9.
  VF p = hn::Set(d, 1.0f / 5040);
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 720));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 120));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 24));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 6));
  p = hn::MulAdd(p, r, hn::Set(d, 0.5f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  const auto power = hn::ShiftLeft<23>(hn::Add(n, hn::Set(di, 127)));
  return hn::IfThenElseZero(representable, hn::Mul(p, hn::BitCast(d, power)));
}

HWY_INLINE float Exp(float x) { return hn::GetLane(Exp(hn::Set(DF(), x))); }

HWY_INLINE float Sum(VF v) { return hn::GetLane(hn::SumOfLanes(DF(), v)); }

}  // namespace sparsekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard per target
