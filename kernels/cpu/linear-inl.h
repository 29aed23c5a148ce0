// What products of floats share, whatever the weights are read from. Compiled once per instruction
// set.
#include <hwy/highway.h>

#include "kernels/cpu/operations.h"
#include "kernels/cpu/vector-inl.h"

#if defined(SPARSEKV_KERNELS_CPU_LINEAR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SPARSEKV_KERNELS_CPU_LINEAR_INL_H_
#undef SPARSEKV_KERNELS_CPU_LINEAR_INL_H_
#else
#define SPARSEKV_KERNELS_CPU_LINEAR_INL_H_
#endif

// Every y[t, o] is one vector accumulator that takes x[t, i..i+kLanes) * w[o, i..i+kLanes) in the
// order of i, and one horizontal sum at the end. The tiles below differ in which accumulators are
// in registers together and in how often they rest in memory, which changes no bit.
HWY_BEFORE_NAMESPACE();
namespace sparsekv::cpu::HWY_NAMESPACE {

constexpr size_t kTileTokens = 4;
constexpr size_t kTileOutputs = kManyRegisters ? 6 : 3;
constexpr size_t kPanelOutputs = 24;   // weights that are widened together
constexpr size_t kPanelInputs = 1024;  // a panel of them is 96 KiB of float32: in the L2 cache
constexpr size_t kPanelTokens = 96;
// From this many tokens on, widening the weights first is cheaper than widening them in registers.
constexpr size_t kMinPanelTokens = 8;
constexpr size_t kDirectOutputs = 24;  // outputs of a task when weights are read as they lie
static_assert(kPanelOutputs % kTileOutputs == 0 && kPanelTokens % kTileTokens == 0);

// Rows of weights that are widened to float32 as they are loaded. Others (linear_fp8.cc) have the
// same two functions.
template <typename W>
struct PlainRows {
  const W* w = nullptr;  // [outputs][stride]
  size_t stride = 0;

  PlainRows From(size_t output) const { return {w + output * stride, stride}; }
  HWY_INLINE VF Load(size_t output, size_t input) const {
    return LoadFloats(w + output * stride + input);
  }
};

// Where a tile's accumulators start and end. `partials` null: start at zero and finish into y.
struct TileEnds {
  float* partials = nullptr;   // [tokens][outputs] vectors between the blocks of inputs
  size_t partials_stride = 0;  // floats between tokens
  bool first = true;
  bool last = true;
  float* y = nullptr;
  size_t y_stride = 0;
  bool accumulate = false;
};

template <size_t kTokens, size_t kOutputs, typename Rows>
HWY_INLINE void Tile(const float* HWY_RESTRICT x, size_t x_stride, const Rows& w, size_t inputs,
                     const TileEnds& ends) {
  const DF d;
  VF sums[kTokens][kOutputs];
#pragma GCC unroll 8
  for (size_t t = 0; t < kTokens; ++t) {
#pragma GCC unroll 8
    for (size_t o = 0; o < kOutputs; ++o) {
      sums[t][o] = ends.first ? hn::Zero(d)
                              : hn::LoadU(d, ends.partials + t * ends.partials_stride + o * kLanes);
    }
  }
  for (size_t i = 0; i < inputs; i += kLanes) {
    VF weights[kOutputs];
#pragma GCC unroll 8
    for (size_t o = 0; o < kOutputs; ++o) weights[o] = w.Load(o, i);
#pragma GCC unroll 8
    for (size_t t = 0; t < kTokens; ++t) {
      const VF xs = hn::LoadU(d, x + t * x_stride + i);
#pragma GCC unroll 8
      for (size_t o = 0; o < kOutputs; ++o) sums[t][o] = hn::MulAdd(xs, weights[o], sums[t][o]);
    }
  }
#pragma GCC unroll 8
  for (size_t t = 0; t < kTokens; ++t) {
#pragma GCC unroll 8
    for (size_t o = 0; o < kOutputs; ++o) {
      if (!ends.last) {
        hn::StoreU(sums[t][o], d, ends.partials + t * ends.partials_stride + o * kLanes);
        continue;
      }
      float& y = ends.y[t * ends.y_stride + o];
      y = ends.accumulate ? y + Sum(sums[t][o]) : Sum(sums[t][o]);
    }
  }
}

inline TileEnds Advanced(TileEnds ends, size_t tokens, size_t outputs) {
  if (ends.partials != nullptr) {
    ends.partials += tokens * ends.partials_stride + outputs * kLanes;
  }
  ends.y += tokens * ends.y_stride + outputs;
  return ends;
}

// All tokens for kOutputs outputs.
template <size_t kOutputs, typename Rows>
HWY_NOINLINE void Column(const float* x, size_t x_stride, size_t tokens, const Rows& w,
                         size_t inputs, const TileEnds& ends) {
  size_t t = 0;
  for (; t + kTileTokens <= tokens; t += kTileTokens) {
    Tile<kTileTokens, kOutputs>(x + t * x_stride, x_stride, w, inputs, Advanced(ends, t, 0));
  }
  // The rest together: each pass reads the weights again.
  const float* rest = x + t * x_stride;
  const TileEnds rest_ends = Advanced(ends, t, 0);
  static_assert(kTileTokens == 4);
  switch (tokens - t) {
    case 3:
      return Tile<3, kOutputs>(rest, x_stride, w, inputs, rest_ends);
    case 2:
      return Tile<2, kOutputs>(rest, x_stride, w, inputs, rest_ends);
    case 1:
      return Tile<1, kOutputs>(rest, x_stride, w, inputs, rest_ends);
  }
}

// All tokens for all outputs of a block of weights.
template <typename Rows>
void Block(const float* x, size_t x_stride, size_t tokens, const Rows& w, size_t outputs,
           size_t inputs, const TileEnds& ends) {
  size_t o = 0;
  for (; o + kTileOutputs <= outputs; o += kTileOutputs) {
    Column<kTileOutputs>(x, x_stride, tokens, w.From(o), inputs, Advanced(ends, 0, o));
  }
  for (; o < outputs; ++o) {
    Column<1>(x, x_stride, tokens, w.From(o), inputs, Advanced(ends, 0, o));
  }
}

// One panel of outputs for all tokens. x has rows of `padded` floats.
template <typename Widen>
void Panel(const LinearArgs& args, const Widen& widen, const float* x, size_t padded,
           size_t first_output, float* scratch) {
  const size_t inputs = args.weight.cols;
  const size_t all_outputs = args.weight.rows;
  const size_t outputs = HWY_MIN(kPanelOutputs, all_outputs - first_output);
  float* wide = scratch;
  float* partials = scratch + kPanelOutputs * kPanelInputs;
  for (size_t t = 0; t < args.tokens; t += kPanelTokens) {
    const size_t tokens = HWY_MIN(kPanelTokens, args.tokens - t);
    for (size_t i = 0; i < padded; i += kPanelInputs) {
      const size_t width = HWY_MIN(kPanelInputs, padded - i);
      for (size_t o = 0; o < outputs; ++o) {
        widen(first_output + o, i, HWY_MIN(width, inputs - i), width, wide + o * width);
      }
      const TileEnds ends{.partials = partials,
                          .partials_stride = kPanelOutputs * kLanes,
                          .first = i == 0,
                          .last = i + width == padded,
                          .y = args.y + t * all_outputs + first_output,
                          .y_stride = all_outputs,
                          .accumulate = args.accumulate};
      Block(x + t * padded + i, padded, tokens, PlainRows<float>{wide, width}, outputs, width,
            ends);
    }
  }
}

// Many tokens, or inputs that are no multiple of a vector. widen(output, input, count, padded, to)
// writes `count` weights of an output from an input on, then zeros up to `padded`.
template <typename Widen>
void Panels(const LinearArgs& args, const Widen& widen, Context& context) {
  const size_t inputs = args.weight.cols;
  const size_t padded = RoundUp(inputs, kLanes);
  const float* x = args.x;
  if (padded !=
      inputs) {  // never in a real checkpoint: pay a copy rather than have tails everywhere
    float* copy = context.shared.Get(0, args.tokens * padded);
    for (size_t t = 0; t < args.tokens; ++t) {
      WidenRow(args.x + t * inputs, inputs, padded, copy + t * padded);
    }
    x = copy;
  }
  const size_t floats = kPanelOutputs * (kPanelInputs + kPanelTokens * kLanes);
  const auto run = [&](uint32_t task, unsigned thread) {
    Panel(args, widen, x, padded, task * kPanelOutputs, context.scratch.Get(thread, floats));
  };
  const size_t panels = (args.weight.rows + kPanelOutputs - 1) / kPanelOutputs;
  context.pool.Run(static_cast<uint32_t>(panels), run);
}

}  // namespace sparsekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard per target
