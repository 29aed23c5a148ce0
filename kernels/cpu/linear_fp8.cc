#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear_fp8.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/linear-inl.h"

// Products with float8 codes where they lie in the checkpoint. A code is widened and multiplied
// with its scale in float32, rounded as if the matrix had been expanded, and then is a weight like
// any other: few tokens and many sum it in one order.
HWY_BEFORE_NAMESPACE();
namespace sparsekv::cpu::HWY_NAMESPACE {
namespace {

// A code's bits, moved to where a float16 has them, are its value times 2^-8, subnormal ones too.
// (As a float32 they would be subnormal far more often, which some machines are slow with.)
constexpr float kCodeScale = 0x1p8f;
constexpr size_t kTaskBytes = 256 << 10;

// kLanes values of 2^-8 of what the codes mean.
HWY_INLINE VF LoadCodes(const uint8_t* from) {
  const hn::Rebind<int8_t, DF> d8;
  const hn::Rebind<int16_t, DF> d16;
  const hn::Rebind<hwy::float16_t, DF> df16;
  const auto codes = hn::PromoteTo(d16, hn::LoadU(d8, reinterpret_cast<const int8_t*>(from)));
  const auto kept = hn::Set(d16, static_cast<int16_t>(0xBF80));
  return hn::PromoteTo(DF(), hn::BitCast(df16, hn::And(hn::ShiftLeft<7>(codes), kept)));
}

// Rows for Tile, over inputs that share a scale.
struct CodeRows {
  const uint8_t* codes = nullptr;
  size_t stride = 0;
  const float* scales = nullptr;  // [outputs], times kCodeScale

  CodeRows From(size_t output) const { return {codes + output * stride, stride, scales + output}; }
  HWY_INLINE VF Load(size_t output, size_t input) const {
    // Rows are too short for the hardware to learn each: what the next tile reads.
    if (input % 64 == 0) __builtin_prefetch(codes + (output + kTileOutputs) * stride + input);
    return hn::Mul(LoadCodes(codes + output * stride + input), hn::Set(DF(), scales[output]));
  }
};

class Fp8Matrix {
 public:
  explicit Fp8Matrix(const WeightView& w)
      : codes_(static_cast<const uint8_t*>(w.data)),
        scales_(static_cast<const float*>(w.coding.scales)),
        cols_(w.cols),
        group_(w.coding.group),
        groups_(CeilDivide(w.cols, w.coding.group)),
        block_rows_(w.coding.block_rows) {}

  // Where the scale of an input ends.
  size_t GroupEnd(size_t input) const { return HWY_MIN((input / group_ + 1) * group_, cols_); }
  float Scale(size_t output, size_t input) const {
    return scales_[output / block_rows_ * groups_ + input / group_] * kCodeScale;
  }
  const uint8_t* At(size_t output, size_t input) const { return codes_ + output * cols_ + input; }
  size_t cols() const { return cols_; }

  // As WidenRow (vector-inl.h), from an input on.
  void Widen(size_t output, size_t input, size_t count, size_t padded, float* to) const {
    size_t i = 0;
    while (i < count) {
      const size_t end = HWY_MIN(GroupEnd(input + i) - input, count);
      const VF scale = hn::Set(DF(), Scale(output, input + i));
      for (; i + kLanes <= end; i += kLanes) {
        hn::StoreU(hn::Mul(LoadCodes(At(output, input + i)), scale), DF(), to + i);
      }
      if (i == end) continue;
      uint8_t tail[kLanes] = {};
      for (size_t j = 0; i + j < end; ++j) tail[j] = *At(output, input + i + j);
      HWY_ALIGN float wide[kLanes];
      hn::Store(hn::Mul(LoadCodes(tail), scale), DF(), wide);
      for (size_t j = 0; i < end; ++i, ++j) to[i] = wide[j];
    }
    for (; i < padded; ++i) to[i] = 0;
  }

 private:
  const uint8_t* codes_;
  const float* scales_;
  size_t cols_, group_, groups_, block_rows_;
};

// Few tokens: the codes are read once. Accumulators rest in memory between blocks of inputs.
void DirectCodes(const LinearArgs& args, const Fp8Matrix& w, Context& context) {
  const size_t inputs = w.cols();
  const size_t all = args.weight.rows;
  const auto piece = [&](size_t first, unsigned thread) {
    const size_t outputs = HWY_MIN(kDirectOutputs, all - first);
    TileEnds ends{.partials_stride = kDirectOutputs * kLanes,
                  .y = args.y + first,
                  .y_stride = all,
                  .accumulate = args.accumulate};
    ends.partials = context.scratch.Get(thread, kMinPanelTokens * ends.partials_stride);
    for (size_t i = 0; i < inputs;) {
      const size_t end = w.GroupEnd(i);
      float scales[kDirectOutputs];
      for (size_t o = 0; o < outputs; ++o) scales[o] = w.Scale(first + o, i);
      ends.first = i == 0;
      ends.last = end == inputs;
      Block(args.x + i, inputs, args.tokens, CodeRows{w.At(first, i), inputs, scales}, outputs,
            end - i, ends);
      i = end;
    }
  };
  // Long tasks: each begins with a cold stream. But several for a thread.
  const size_t pieces = (all + kDirectOutputs - 1) / kDirectOutputs;
  const size_t most = HWY_MAX(size_t{1}, pieces / (8 * context.pool.threads()));
  const size_t task_pieces =
      HWY_MIN(most, HWY_MAX(size_t{1}, kTaskBytes / (inputs * kDirectOutputs)));
  const auto run = [&](uint32_t task, unsigned thread) {
    const size_t end = HWY_MIN((task + 1) * task_pieces, pieces);
    for (size_t p = task * task_pieces; p < end; ++p) piece(p * kDirectOutputs, thread);
  };
  context.pool.Run(static_cast<uint32_t>((pieces + task_pieces - 1) / task_pieces), run);
}

void LinearFp8Impl(const LinearArgs& args, Context& context) {
  const Fp8Matrix w(args.weight);
  const bool whole_vectors =
      args.weight.cols % kLanes == 0 &&
      (args.weight.coding.group % kLanes == 0 || args.weight.coding.group >= args.weight.cols);
  if (args.tokens < kMinPanelTokens && whole_vectors) return DirectCodes(args, w, context);
  Panels(
      args,
      [&](size_t output, size_t input, size_t count, size_t padded, float* to) {
        w.Widen(output, input, count, padded, to);
      },
      context);
}

}  // namespace
}  // namespace sparsekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sparsekv::cpu {

HWY_EXPORT(LinearFp8Impl);

void LinearFp8(const LinearArgs& args, Context& context) {
  HWY_DYNAMIC_DISPATCH(LinearFp8Impl)(args, context);
}

}  // namespace sparsekv::cpu
#endif  // HWY_ONCE
