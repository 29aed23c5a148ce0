#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear_int.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/cpu/operations.h"
#include "kernels/cpu/vector-inl.h"

// Products with integer codes. x is rounded to 16-bit integers, up to 128 inputs of one group to
// one scale (their largest value is 32,767: an error of 2^-16 of it), so that sums inside such a
// block are sums of integers and exact. A block's sum is scaled and added to the output's total in
// the order of the blocks. A lane of a vector is an output, so nothing is ever summed across lanes,
// and how many tokens are computed together changes no bit.
#ifndef SPARSEKV_KERNELS_CPU_LINEAR_INT_ONCE_
#define SPARSEKV_KERNELS_CPU_LINEAR_INT_ONCE_
namespace sparsekv::cpu {
constexpr size_t kMostProducts = 4;  // that are computed together
}  // namespace sparsekv::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace sparsekv::cpu::HWY_NAMESPACE {
namespace {

using DI32 = hn::RebindToSigned<DF>;
using DU32 = hn::RebindToUnsigned<DF>;
using DI16 = hn::Repartition<int16_t, DF>;
using DU16 = hn::Repartition<uint16_t, DF>;
using VI32 = hn::Vec<DI32>;
using VI16 = hn::Vec<DI16>;
using VU16 = hn::Vec<DU16>;

constexpr uint32_t kBlockInputs = 128;  // inputs of x that share a scale, at most
constexpr size_t kVectors = kPanelOutputs / kLanes;
constexpr size_t kTileTokens = kVectors > 2 ? 2 : 4;  // what 16 registers hold, or 32
constexpr size_t kTaskBytes = 128 << 10;              // of codes: a task begins with cold streams
constexpr size_t kAheadBytes = 4096;  // the hardware's own prefetching ends with each page
static_assert(kPanelOutputs % kLanes == 0);

// x as integers, with what they mean: x = scale * code.
struct CodedX {
  const int16_t* codes = nullptr;  // [tokens][stride], in the order of the weights' codes
  const float* scales = nullptr;   // [tokens][blocks]
  const int32_t* sums = nullptr;   // [tokens][blocks], of the codes
  size_t stride = 0;
  size_t blocks = 0;

  CodedX From(size_t token) const {
    return {codes + token * stride, scales + token * blocks, sums + token * blocks, stride, blocks};
  }
};

// One block, padded with zeros to a whole vector. NaN and infinity make the scale NaN.
void CodeBlock(const float* HWY_RESTRICT x, size_t count, int16_t* HWY_RESTRICT codes, float* scale,
               int32_t* sum) {
  const DF d;
  const DI32 di;
  const hn::Rebind<int16_t, DF> di16;
  VF largest = hn::Zero(d), poison = hn::Zero(d);
  for (size_t i = 0; i < count; i += kLanes) {
    const VF v = hn::LoadU(d, x + i);
    largest = hn::Max(largest, hn::Abs(v));
    poison = hn::Add(poison, hn::Sub(v, v));
  }
  const float most = hn::GetLane(hn::MaxOfLanes(d, largest));
  const bool zero = most < 1e-30f;  // its reciprocal would be infinite
  const VF to_code = hn::Set(d, zero ? 0.0f : 32767.0f / most);
  VI32 total = hn::Zero(di);
  for (size_t i = 0; i < count; i += kLanes) {
    const VI32 code = hn::NearestInt(hn::Mul(hn::LoadU(d, x + i), to_code));
    total = hn::Add(total, code);
    hn::StoreU(hn::DemoteTo(di16, code), di16, codes + i);
  }
  *scale = (zero ? 0.0f : most / 32767.0f) + Sum(poison);
  *sum = hn::GetLane(hn::SumOfLanes(di, total));
}

// One token. Blocks come in order, so what one writes beyond its end the next one writes over.
void CodeToken(const float* x, const WeightView& w, int16_t* codes, float* scales, int32_t* sums) {
  const uint32_t* order = w.coding.order;
  for (uint32_t group = 0; group < w.cols; group += w.coding.group) {
    for (uint32_t from = group; from < group + w.coding.group; from += kBlockInputs) {
      const uint32_t count = HWY_MIN(kBlockInputs, group + w.coding.group - from);
      HWY_ALIGN float block[kBlockInputs + kLanes] = {};
      if (order == nullptr) {
        std::memcpy(block, x + from, count * sizeof(float));
      } else {
        for (uint32_t i = 0; i < count; ++i) block[i] = x[order[from + i]];
      }
      CodeBlock(block, RoundUp(count, kUnitInputs), codes + from, scales++, sums++);
    }
  }
}

// Where the codes of x lie, for one of several products in `memory`; no memory yet.
struct XLayout {
  explicit XLayout(const LinearArgs& args) {
    const WeightView& w = args.weight;
    const size_t groups = CeilDivide(w.cols, w.coding.group);
    tokens = args.tokens;
    stride = RoundUp(w.cols, kUnitInputs) + 2 * kLanes;
    blocks = groups * CeilDivide(w.coding.group, kBlockInputs);
    code_floats = RoundUp(tokens * stride, 2) / 2;
  }
  size_t floats() const { return code_floats + 2 * tokens * blocks; }

  size_t tokens, stride, blocks, code_floats;
};

CodedX Code(const LinearArgs& args, float* memory, Context& context) {
  const WeightView& w = args.weight;
  const XLayout layout(args);
  const size_t stride = layout.stride, blocks = layout.blocks;
  auto* codes = reinterpret_cast<int16_t*>(memory);
  float* scales = memory + layout.code_floats;
  auto* sums = reinterpret_cast<int32_t*>(scales + layout.tokens * blocks);
  context.pool.Run(args.tokens, [&](uint32_t t, unsigned) {
    CodeToken(args.x + size_t{t} * w.cols, w, codes + t * stride, scales + t * blocks,
              sums + t * blocks);
  });
  return {codes, scales, sums, stride, blocks};
}

// The words of a unit, of kLanes outputs.
template <Encoding kEncoding>
struct Words {
  VU16 v[WordsOfUnit(kEncoding)];

  HWY_INLINE explicit Words(const uint32_t* from) {
    for (size_t i = 0; i < WordsOfUnit(kEncoding); ++i) {
      v[i] = hn::BitCast(DU16(), hn::LoadU(DU32(), from + i * kPanelOutputs));
    }
  }
};

// Inputs 2 * kPair and the next of a unit, of kLanes outputs: pairs of 16-bit codes.
template <Encoding kEncoding, size_t kPair>
HWY_INLINE VI16 Unpack(const Words<kEncoding>& words) {
  const DU16 d;
  constexpr CodePlace kPlace = PlaceOf(kEncoding, 2 * kPair);
  constexpr int kBits = kEncoding == Encoding::kInt4 ? 4 : 8;
  VU16 v = words.v[kPlace.word];
  if constexpr (kPlace.shift > 0) v = hn::ShiftRight<kPlace.shift>(v);
  if constexpr (kPlace.shift + kBits < 16) v = hn::And(v, hn::Set(d, (1 << kBits) - 1));
  return hn::BitCast(DI16(), v);
}

// Panels that one token's products read side by side: memory serves several streams faster than
// one, and they share what is loaded of x.
constexpr size_t kSidePanels = kVectors > 2 ? 2 : 4;

template <size_t kTokens, size_t kPanels>
using Sums = VI32[kTokens][kPanels * kVectors];

// A pair of x's codes in every lane.
HWY_INLINE VI16 PairOfX(const int16_t* codes) {
  int32_t pair;
  std::memcpy(&pair, codes, sizeof(pair));
  return hn::BitCast(DI16(), hn::Set(DI32(), pair));
}

HWY_INLINE VI32 AddProducts(VI16 codes, VI16 xs, VI32 sum) {
  VI32 unused = hn::Zero(DI32());
  return hn::ReorderWidenMulAccumulate(DI32(), codes, xs, sum, unused);
}

template <Encoding kEncoding, size_t kPair, size_t kTokens, size_t kPanels>
HWY_INLINE void AddPair(const uint32_t* words, size_t panel_words, const CodedX& x, size_t input,
                        Sums<kTokens, kPanels>& sums) {
  VI16 xs[kTokens];
#pragma GCC unroll 4
  for (size_t t = 0; t < kTokens; ++t) xs[t] = PairOfX(x.codes + t * x.stride + input + 2 * kPair);
#pragma GCC unroll 8
  for (size_t c = 0; c < kPanels * kVectors; ++c) {
    const Words<kEncoding> unit(words + c / kVectors * panel_words + c % kVectors * kLanes);
    const VI16 codes = Unpack<kEncoding, kPair>(unit);
#pragma GCC unroll 4
    for (size_t t = 0; t < kTokens; ++t) sums[t][c] = AddProducts(codes, xs[t], sums[t][c]);
  }
}

// All pairs of a unit for one token: a word is loaded once.
template <Encoding kEncoding, size_t kPanels>
HWY_INLINE void AddUnit(const uint32_t* words, size_t panel_words, const int16_t* x,
                        Sums<1, kPanels>& sums) {
  const VI16 xs[] = {PairOfX(x), PairOfX(x + 2), PairOfX(x + 4), PairOfX(x + 6)};
#pragma GCC unroll 8
  for (size_t c = 0; c < kPanels * kVectors; ++c) {
    const Words<kEncoding> unit(words + c / kVectors * panel_words + c % kVectors * kLanes);
    VI32 sum = sums[0][c];
    sum = AddProducts(Unpack<kEncoding, 0>(unit), xs[0], sum);
    sum = AddProducts(Unpack<kEncoding, 1>(unit), xs[1], sum);
    sum = AddProducts(Unpack<kEncoding, 2>(unit), xs[2], sum);
    sums[0][c] = AddProducts(Unpack<kEncoding, 3>(unit), xs[3], sum);
  }
}

// sums += codes . x over `units` units. One token's products fetch what lies at `ahead` meanwhile.
template <Encoding kEncoding, size_t kTokens, size_t kPanels>
HWY_INLINE void AddBlock(const uint32_t* HWY_RESTRICT words, const uint32_t* ahead,
                         size_t panel_words, size_t units, const CodedX& x, size_t input,
                         Sums<kTokens, kPanels>& sums) {
  constexpr size_t kUnitWords = WordsOfUnit(kEncoding) * kPanelOutputs;
  constexpr size_t kLineWords = 64 / sizeof(uint32_t);
  for (size_t u = 0; u < units; ++u, words += kUnitWords, input += kUnitInputs) {
    if constexpr (kTokens == 1) {
      for (size_t p = 0; p < kPanels; ++p) {
        for (size_t line = 0; line < kUnitWords; line += kLineWords) {
          __builtin_prefetch(ahead + u * kUnitWords + p * panel_words + line);
        }
      }
      AddUnit<kEncoding, kPanels>(words, panel_words, x.codes + input, sums);
    } else {
      AddPair<kEncoding, 0, kTokens, kPanels>(words, panel_words, x, input, sums);
      AddPair<kEncoding, 1, kTokens, kPanels>(words, panel_words, x, input, sums);
      AddPair<kEncoding, 2, kTokens, kPanels>(words, panel_words, x, input, sums);
      AddPair<kEncoding, 3, kTokens, kPanels>(words, panel_words, x, input, sums);
    }
  }
}

// The zero points of a group, kLanes outputs.
HWY_INLINE VI32 ZeroPoints(const Coding& coding, size_t at) {
  if (coding.zeros == nullptr) return hn::Set(DI32(), coding.zero);
  const hn::Rebind<uint8_t, DI32> d8;
  return hn::PromoteTo(DI32(), hn::LoadU(d8, coding.zeros + at));
}

// Where a matrix's panels lie.
template <Encoding kEncoding>
struct PanelShape {
  explicit PanelShape(const WeightView& w)
      : groups(CeilDivide(w.cols, w.coding.group)), units(CeilDivide(w.cols, kUnitInputs)) {}

  static constexpr size_t kUnitWords = WordsOfUnit(kEncoding) * kPanelOutputs;
  static constexpr size_t kAheadUnits = kAheadBytes / sizeof(uint32_t) / kUnitWords;

  size_t words() const { return units * kUnitWords; }  // of a panel
  // What is wanted soon by who is at a unit of a panel, and goes on with panel `next`.
  const uint32_t* Ahead(const void* matrix, size_t panel, size_t next, size_t unit) const {
    const auto* words_of = static_cast<const uint32_t*>(matrix);
    unit += kAheadUnits;
    return words_of + (unit < units ? panel * words() + unit * kUnitWords
                                    : next * words() + (unit - units) * kUnitWords);
  }

  size_t groups;
  size_t units;  // of a panel
};

// The outputs of kPanels panels for kTokens tokens, into out[t][panel][16]. Panel `next` comes
// next.
template <Encoding kEncoding, size_t kTokens, size_t kPanels, typename S>
HWY_INLINE void Tile(const WeightView& w, const S* scales, size_t panel, size_t next,
                     const CodedX& x, float (*HWY_RESTRICT out)[kPanels * kPanelOutputs]) {
  const DF d;
  const PanelShape<kEncoding> shape(w);
  const size_t group_blocks = x.blocks / shape.groups;
  const auto* words = static_cast<const uint32_t*>(w.data) + panel * shape.words();
  // Scales and zero points of a column of kLanes outputs.
  const auto at = [&](size_t g, size_t c) {
    return ((panel + c / kVectors) * shape.groups + g) * kPanelOutputs + c % kVectors * kLanes;
  };
  for (size_t t = 0; t < kTokens; ++t) std::fill_n(out[t], kPanels * kPanelOutputs, 0.0f);
  for (size_t g = 0; g < shape.groups; ++g) {
    for (size_t p = 0; kTokens == 1 && p < kPanels; ++p) {
      const size_t soon = ((next + p) * shape.groups + g) * kPanelOutputs;
      __builtin_prefetch(scales + soon);
      if (w.coding.zeros != nullptr) __builtin_prefetch(w.coding.zeros + soon);
    }
    const size_t first = g * w.coding.group;
    const size_t end = HWY_MIN(first + w.coding.group, w.cols);
    for (size_t b = 0; b < group_blocks; ++b) {
      const size_t from = first + b * kBlockInputs;
      const size_t units =
          (HWY_MIN(end - from, size_t{kBlockInputs}) + kUnitInputs - 1) / kUnitInputs;
      const size_t block = g * group_blocks + b;
      Sums<kTokens, kPanels> sums;
#pragma GCC unroll 8
      for (size_t c = 0; c < kPanels * kVectors; ++c) {
        const VI32 zeros = ZeroPoints(w.coding, at(g, c));
#pragma GCC unroll 4
        for (size_t t = 0; t < kTokens; ++t) {
          sums[t][c] = hn::Mul(zeros, hn::Set(DI32(), -x.sums[t * x.blocks + block]));
        }
      }
      const size_t unit = from / kUnitInputs;
      AddBlock<kEncoding, kTokens, kPanels>(words + unit * shape.kUnitWords,
                                            shape.Ahead(w.data, panel, next, unit), shape.words(),
                                            units, x, from, sums);
#pragma GCC unroll 8
      for (size_t c = 0; c < kPanels * kVectors; ++c) {
        const VF scale = LoadFloats(scales + at(g, c));
#pragma GCC unroll 4
        for (size_t t = 0; t < kTokens; ++t) {
          const VF sum =
              hn::Mul(hn::ConvertTo(d, sums[t][c]), hn::Set(d, x.scales[t * x.blocks + block]));
          float* total = out[t] + c * kLanes;
          hn::Store(hn::MulAdd(sum, scale, hn::Load(d, total)), d, total);
        }
      }
    }
  }
}

template <Encoding kEncoding, size_t kTokens, size_t kPanels, typename S>
HWY_NOINLINE void TileInto(const LinearArgs& args, const S* scales, size_t panel, size_t next,
                           size_t token, const CodedX& x) {
  HWY_ALIGN float out[kTokens][kPanels * kPanelOutputs];
  Tile<kEncoding, kTokens, kPanels>(args.weight, scales, panel, next, x.From(token), out);
  const size_t first = panel * kPanelOutputs;
  const size_t outputs = HWY_MIN(kPanels * kPanelOutputs, args.weight.rows - first);
  for (size_t t = 0; t < kTokens; ++t) {
    float* y = args.y + (token + t) * args.weight.rows + first;
    for (size_t o = 0; o < outputs; ++o) y[o] = args.accumulate ? y[o] + out[t][o] : out[t][o];
  }
}

// All tokens for the panels [panel, end); a thread that is done there probably goes on at `then`.
template <Encoding kEncoding, typename S>
void SomePanels(const LinearArgs& args, const S* scales, size_t panel, size_t end, size_t then,
                const CodedX& x) {
  if (args.tokens == 1) {
    for (; panel + kSidePanels <= end; panel += kSidePanels) {
      const size_t next = panel + 2 * kSidePanels <= end ? panel + kSidePanels : then;
      TileInto<kEncoding, 1, kSidePanels>(args, scales, panel, next, 0, x);
    }
  }
  for (; panel < end; ++panel) {
    size_t t = 0;
    for (; t + kTileTokens <= args.tokens; t += kTileTokens) {
      TileInto<kEncoding, kTileTokens, 1>(args, scales, panel, panel + 1, t, x);
    }
    switch (args.tokens - t) {
      case 3:
        TileInto<kEncoding, 3, 1>(args, scales, panel, panel + 1, t, x);
        break;
      case 2:
        TileInto<kEncoding, 2, 1>(args, scales, panel, panel + 1, t, x);
        break;
      case 1:
        TileInto<kEncoding, 1, 1>(args, scales, panel, panel + 1, t, x);
        break;
    }
  }
}

// One of several products, and its share of their tasks.
struct Product {
  // Its tasks come after `before` others.
  void Plan(const LinearArgs& product, uint32_t before, unsigned pool_threads) {
    args = &product;
    first_task = before;
    threads = pool_threads;
    const WeightView& w = product.weight;
    panels = CeilDivide(w.rows, kPanelOutputs);
    const size_t panel_bytes = size_t{CeilDivide(w.cols, kUnitInputs)} *
                               WordsOfUnit(w.coding.encoding) * kPanelOutputs * sizeof(uint32_t);
    // Several tasks for a thread, as long as there are panels; of panels that go together.
    const size_t wanted = HWY_MIN(panels / (8 * threads), kTaskBytes / panel_bytes);
    task_panels = HWY_MAX(wanted / kSidePanels, size_t{1}) * kSidePanels;
    end_task = before + static_cast<uint32_t>((panels + task_panels - 1) / task_panels);
  }

  void Run(uint32_t task) const {
    const WeightView& w = args->weight;
    const size_t first = (task - first_task) * task_panels;
    const size_t end = HWY_MIN(first + task_panels, panels);
    // Tasks are given out from the last to the first, so the next one is `threads` before.
    const size_t step = threads * task_panels, then = first < step ? first : first - step;
    WithType(w.coding.scales, w.dtype, [&](const auto* scales) {
      if (w.coding.encoding == Encoding::kInt4) {
        SomePanels<Encoding::kInt4>(*args, scales, first, end, then, x);
      } else {
        SomePanels<Encoding::kInt8>(*args, scales, first, end, then, x);
      }
    });
  }

  // Whether both take x in the same codes.
  bool SharesCodes(const Product& other) const {
    const Coding &a = args->weight.coding, &b = other.args->weight.coding;
    return a.group == b.group && a.order == b.order;
  }

  const LinearArgs* args = nullptr;
  uint32_t first_task = 0, end_task = 0;
  unsigned threads = 1;
  size_t panels = 0, task_panels = 0;
  CodedX x;
};

// Several products of one x. Their tasks are one list, at whose end alone threads wait.
void LinearIntImpl(const LinearArgs* args, size_t count, Context& context) {
  Product products[kMostProducts];
  size_t floats = 0;
  for (size_t i = 0; i < count; ++i) {
    products[i].Plan(args[i], i == 0 ? 0 : products[i - 1].end_task, context.pool.threads());
    floats += XLayout(args[i]).floats();
  }
  float* free = context.shared.Get(0, floats);
  for (size_t i = 0; i < count; ++i) {
    if (i > 0 && products[i].SharesCodes(products[i - 1])) {
      products[i].x = products[i - 1].x;
      continue;
    }
    products[i].x = Code(args[i], free, context);
    free += XLayout(args[i]).floats();
  }
  context.pool.Run(products[count - 1].end_task, [&](uint32_t task, unsigned) {
    const Product* product = products;
    while (task >= product->end_task) ++product;
    product->Run(task);
  });
}

}  // namespace
}  // namespace sparsekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sparsekv::cpu {

HWY_EXPORT(LinearIntImpl);

void LinearInt(std::span<const LinearArgs> args, Context& context) {
  for (const LinearArgs& one : args) {
    CHECK(one.x == args[0].x && one.tokens == args[0].tokens);
    CHECK_EQ(one.weight.cols, args[0].weight.cols);
  }
  for (size_t i = 0; i < args.size(); i += kMostProducts) {
    const size_t count = std::min(kMostProducts, args.size() - i);
    HWY_DYNAMIC_DISPATCH(LinearIntImpl)(&args[i], count, context);
  }
}

}  // namespace sparsekv::cpu
#endif  // HWY_ONCE
