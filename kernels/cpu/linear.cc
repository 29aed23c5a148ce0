#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>

#include "kernels/cpu/linear-inl.h"

// Products with weights in a float type of their own; codes go to linear_int.cc and linear_fp8.cc.
HWY_BEFORE_NAMESPACE();
namespace sparsekv::cpu::HWY_NAMESPACE {
namespace {

// Few tokens: the weights are read once, in their own type, and widened in registers.
template <typename W>
void Direct(const LinearArgs& args, const W* w, Context& context) {
  const size_t inputs = args.weight.cols;
  const size_t outputs = args.weight.rows;
  const auto run = [&](uint32_t task, unsigned) {
    const size_t o = task * kDirectOutputs;
    const TileEnds ends{.y = args.y + o, .y_stride = outputs, .accumulate = args.accumulate};
    Block(args.x, inputs, args.tokens, PlainRows<W>{w + o * inputs, inputs},
          HWY_MIN(kDirectOutputs, outputs - o), inputs, ends);
  };
  context.pool.Run(static_cast<uint32_t>((outputs + kDirectOutputs - 1) / kDirectOutputs), run);
}

template <typename W>
void LinearTyped(const LinearArgs& args, const W* w, Context& context) {
  const size_t inputs = args.weight.cols;
  if (args.tokens < kMinPanelTokens && inputs % kLanes == 0) return Direct(args, w, context);
  Panels(
      args,
      [=](size_t output, size_t input, size_t count, size_t padded, float* to) {
        WidenRow(w + output * inputs + input, count, padded, to);
      },
      context);
}

void LinearImpl(const LinearArgs& args, Context& context) {
  WithType(args.weight.data, args.weight.dtype,
           [&](const auto* w) { LinearTyped(args, w, context); });
}

}  // namespace
}  // namespace sparsekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sparsekv::cpu {

HWY_EXPORT(LinearImpl);

void Linear(const LinearArgs& args, Context& context) {
  switch (args.weight.coding.encoding) {
    case Encoding::kPlain:
      return HWY_DYNAMIC_DISPATCH(LinearImpl)(args, context);
    case Encoding::kInt4:
    case Encoding::kInt8:
      return LinearInt({&args, 1}, context);
    case Encoding::kFp8:
      return LinearFp8(args, context);
  }
}

void LinearOfOne(std::span<const LinearArgs> args, Context& context) {
  const bool integers = std::ranges::all_of(args, [](const LinearArgs& one) {
    const Encoding encoding = one.weight.coding.encoding;
    return encoding == Encoding::kInt4 || encoding == Encoding::kInt8;
  });
  if (integers) return LinearInt(args, context);
  for (const LinearArgs& one : args) Linear(one, context);
}

}  // namespace sparsekv::cpu
#endif  // HWY_ONCE
