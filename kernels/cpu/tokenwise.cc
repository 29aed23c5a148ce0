#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/tokenwise.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <cmath>

#include "base/check.h"
#include "kernels/cpu/operations.h"
#include "kernels/cpu/vector-inl.h"

// Embed, RmsNorm and SwiGlu: one pass over each token's row.
HWY_BEFORE_NAMESPACE();
namespace sparsekv::cpu::HWY_NAMESPACE {
namespace {

void EmbedImpl(const EmbedArgs& args) {
  const size_t hidden = args.table.cols;
  WithType(args.table.data, args.table.dtype, [&](const auto* table) {
    for (size_t t = 0; t < args.ids.size(); ++t) {
      const auto* from = table + args.ids[t] * hidden;
      float* to = args.out + t * hidden;
      size_t i = 0;
      for (; i + kLanes <= hidden; i += kLanes) hn::StoreU(LoadFloats(from + i), DF(), to + i);
      for (; i < hidden; ++i) to[i] = hn::GetLane(LoadFloatsTail(from + i, 1));
    }
  });
}

template <typename W>
void RmsNormRow(const RmsNormArgs& args, const W* weight, size_t token) {
  const DF d;
  const size_t hidden = args.weight.cols;
  const float* x = args.x + token * hidden;
  float* out = args.out + token * hidden;
  // Mean of squares: four accumulators, so that the additions overlap.
  VF squares[4] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
  size_t i = 0;
  for (; i + 4 * kLanes <= hidden; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (size_t j = 0; j < 4; ++j) {
      const VF v = hn::LoadU(d, x + i + j * kLanes);
      squares[j] = hn::MulAdd(v, v, squares[j]);
    }
  }
  for (; i < hidden; i += kLanes) {
    const VF v = i + kLanes <= hidden ? hn::LoadU(d, x + i) : LoadFloatsTail(x + i, hidden - i);
    squares[0] = hn::MulAdd(v, v, squares[0]);
  }
  const float total =
      Sum(hn::Add(hn::Add(squares[0], squares[1]), hn::Add(squares[2], squares[3])));
  const float scale = 1.0f / sqrtf(total / static_cast<float>(hidden) + args.epsilon);
  // Scale.
  const VF scales = hn::Set(d, scale);
  for (i = 0; i + kLanes <= hidden; i += kLanes) {
    const VF scaled = hn::Mul(hn::LoadU(d, x + i), scales);
    hn::StoreU(hn::Mul(scaled, LoadFloats(weight + i)), d, out + i);
  }
  for (; i < hidden; ++i) {
    out[i] = x[i] * scale * hn::GetLane(LoadFloatsTail(weight + i, 1));
  }
}

void RmsNormImpl(const RmsNormArgs& args, size_t token) {
  WithType(args.weight.data, args.weight.dtype,
           [&](const auto* weight) { RmsNormRow(args, weight, token); });
}

HWY_INLINE VF SwiGluVector(VF gate, VF up) {
  const VF one = hn::Set(DF(), 1.0f);
  return hn::Mul(hn::Div(gate, hn::Add(one, Exp(hn::Neg(gate)))), up);
}

void SwiGluImpl(float* HWY_RESTRICT gate, const float* HWY_RESTRICT up, size_t count) {
  const DF d;
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    hn::StoreU(SwiGluVector(hn::LoadU(d, gate + i), hn::LoadU(d, up + i)), d, gate + i);
  }
  for (; i < count; ++i) {
    gate[i] = hn::GetLane(SwiGluVector(hn::Set(d, gate[i]), hn::Set(d, up[i])));
  }
}

}  // namespace
}  // namespace sparsekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sparsekv::cpu {

HWY_EXPORT(EmbedImpl);
HWY_EXPORT(RmsNormImpl);
HWY_EXPORT(SwiGluImpl);

void Embed(const EmbedArgs& args, Context&) {
  for (uint32_t id : args.ids) CHECK_LT(id, args.table.rows);
  HWY_DYNAMIC_DISPATCH(EmbedImpl)(args);
}

void RmsNorm(const RmsNormArgs& args, Context& context) {
  const auto impl = HWY_DYNAMIC_DISPATCH(RmsNormImpl);
  context.pool.Run(args.tokens, [&](uint32_t token, unsigned) { impl(args, token); });
}

void SwiGlu(const SwiGluArgs& args, Context& context) {
  constexpr size_t kChunk = 4096;  // some microseconds: worth a thread that watches for work
  const auto impl = HWY_DYNAMIC_DISPATCH(SwiGluImpl);
  const size_t count = size_t{args.tokens} * args.width;
  const auto chunks = static_cast<uint32_t>((count + kChunk - 1) / kChunk);
  context.pool.Run(chunks, [&](uint32_t chunk, unsigned) {
    const size_t first = chunk * kChunk;
    const size_t size = count - first < kChunk ? count - first : kChunk;
    impl(args.gate + first, args.up + first, size);
  });
}

}  // namespace sparsekv::cpu
#endif  // HWY_ONCE
