#include <algorithm>
#include <type_traits>
#include <vector>

#include "base/check.h"
#include "base/limits.h"
#include "kernels/cuda/begin_kernel.cuh"
#include "kernels/cuda/label_codes.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/tables.cuh"

// Rotation, and the rows and labels of a step's tokens. What is written of a token is found by the
// token: a block takes one KV head of one token and looks which items have it. So one launch does
// for items of any size, and for tokens with two rows or none.
//
// Bytes per token, moved once each: q and k in and out in place, v in, one row per item that has
// the token (2 x head_dim values per KV head), and what a label has. Rows may lie in the host's
// memory: a warp writes a row from one end to the other in stores of 16 bytes per lane.
namespace sparsekv::cuda {
namespace {

constexpr uint32_t kThreads = 128;
constexpr uint32_t kWarp = 32;
constexpr uint32_t kWarps = kThreads / kWarp;
constexpr uint32_t kRopeHeads = 8;  // of one block of Rope
constexpr uint32_t kMostPairs = kMaxHeadDim / 2;
static_assert(kMostPairs <= kThreads);

struct RowTarget {
  StepSpan span;
  DType dtype;
  RowsView rows;
  const uint32_t* slots;
  uint64_t slot_stride;

  __device__ std::byte* Row(uint32_t kv_head, uint32_t token) const {
    return rows.Row(kv_head,
                    slots ? slots[kv_head * slot_stride] : span.position + (token - span.first));
  }
};

struct LabelTarget {
  StepSpan span;
  LabelsView labels;
};

struct Targets {
  const RowTarget* rows = nullptr;
  const LabelTarget* labels = nullptr;
  const uint16_t* channels = nullptr;  // [kv_heads, channels]
  uint32_t row_items = 0;
  uint32_t label_items = 0;
  uint32_t head_dim = 0;
  DType row_dtype = DType::kF32;  // that labels are rounded through
  uint8_t unused[3] = {};         // arguments are hashed as bytes: there is no padding
};
static_assert(std::has_unique_object_representations_v<Targets>);

// ---- Rotation

struct Turns {
  alignas(16) float cosines[kMostPairs];
  alignas(16) float sines[kMostPairs];
};

template <uint32_t kWidth>
struct alignas(kWidth * sizeof(float)) Floats {
  float at[kWidth];
};

// Cosine and sine of a pair's angle. Angles reach millions: only the exact reduction will do.
__device__ float2 TurnOf(uint32_t position, float inverse_frequency) {
  float2 turn;
  sincosf(__fmul_rn(static_cast<float>(position), inverse_frequency), &turn.y, &turn.x);
  return turn;
}

// Every operation and its rounding are written out, so that a pair has the same bits wherever it is
// turned.
__device__ void Turn(float& a, float& b, float cosine, float sine) {
  const float turned = __fmaf_rn(a, cosine, -__fmul_rn(b, sine));
  b = __fmaf_rn(b, cosine, __fmul_rn(a, sine));
  a = turned;
}

// Turns heads that lie one after the other, kWidth pairs per thread.
template <uint32_t kWidth>
__device__ void TurnHeads(float* x, uint32_t heads, uint32_t half, const Turns& turns) {
  using V = Floats<kWidth>;
  const uint32_t per_head = half / kWidth;
  for (uint32_t i = threadIdx.x; i < heads * per_head; i += kThreads) {
    const uint32_t head = i / per_head;
    const uint32_t c = (i - head * per_head) * kWidth;
    auto* first = reinterpret_cast<V*>(x + head * 2 * half + c);
    auto* second = reinterpret_cast<V*>(x + head * 2 * half + half + c);
    const V cosines = *reinterpret_cast<const V*>(turns.cosines + c);
    const V sines = *reinterpret_cast<const V*>(turns.sines + c);
    V a = *first, b = *second;
#pragma unroll
    for (uint32_t j = 0; j < kWidth; ++j) Turn(a.at[j], b.at[j], cosines.at[j], sines.at[j]);
    *first = a;
    *second = b;
  }
}

// A block takes kRopeHeads heads of one token. Bytes: 8 per value.
template <uint32_t kWidth>
__global__ void __launch_bounds__(kThreads)
    RopeKernel(float* x, const uint32_t* positions, const float* inverse_frequency, uint32_t heads,
               uint32_t half) {
  BeginKernel();
  __shared__ Turns turns;
  const uint32_t pair = threadIdx.x;
  if (pair < half) {
    const float2 turn = TurnOf(positions[blockIdx.x], inverse_frequency[pair]);
    turns.cosines[pair] = turn.x;
    turns.sines[pair] = turn.y;
  }
  __syncthreads();
  const uint32_t first = blockIdx.y * kRopeHeads;
  TurnHeads<kWidth>(x + (size_t{blockIdx.x} * heads + first) * 2 * half,
                    min(kRopeHeads, heads - first), half, turns);
}

// ---- Rows and labels

// The bits of `value` in an array of T, as kernels/half.h rounds: NaN keeps its sign and the upper
// bits of its payload, unlike with the hardware's conversion alone.
template <typename T>
__device__ auto StoredBits(float value) {
  const uint32_t bits = __float_as_uint(value);
  if constexpr (std::is_same_v<T, float>) {
    return bits;
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    if (value != value) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    return static_cast<uint16_t>(__bfloat16_as_ushort(__float2bfloat16_rn(value)));
  } else {
    if (value != value) {
      return static_cast<uint16_t>(((bits >> 16) & 0x8000u) | 0x7E00u | ((bits >> 13) & 0x3FFu));
    }
    return static_cast<uint16_t>(__half_as_ushort(__float2half_rn(value)));
  }
}

__device__ float RoundedTo(DType dtype, float value) {
  switch (dtype) {
    case DType::kF32:
      return value;
    case DType::kF16: {
      const uint32_t bits = StoredBits<__half>(value);
      if (value == value) return __half2float(__ushort_as_half(static_cast<uint16_t>(bits)));
      return __uint_as_float(((bits & 0x8000u) << 16) | 0x7F800000u | ((bits & 0x3FFu) << 13));
    }
    case DType::kBF16:
      return __uint_as_float(uint32_t{StoredBits<__nv_bfloat16>(value)} << 16);
  }
  return value;
}

__device__ bool Aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// 16 bytes of a row.
template <typename T>
__device__ void StoreUnit(std::byte* to, const float* from) {
  constexpr uint32_t kValues = 16 / sizeof(T);
  float values[kValues];
#pragma unroll
  for (uint32_t i = 0; i < kValues; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(from + i);
    values[i] = four.x;
    values[i + 1] = four.y;
    values[i + 2] = four.z;
    values[i + 3] = four.w;
  }
  uint32_t words[4];
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      words[i] = StoredBits<T>(values[i]);
    } else {
      words[i] = StoredBits<T>(values[2 * i]) | uint32_t{StoredBits<T>(values[2 * i + 1])} << 16;
    }
  }
  *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
}

// One row, by one warp. `key` is aligned to 16 bytes.
template <typename T>
__device__ void StoreRow(std::byte* row, const float* key, const float* value, uint32_t head_dim) {
  constexpr uint32_t kValues = 16 / sizeof(T);
  const uint32_t lane = threadIdx.x % kWarp;
  const auto from = [&](uint32_t c) { return c < head_dim ? key + c : value + (c - head_dim); };
  if (head_dim % kValues == 0 && Aligned(row) && Aligned(value)) {
    for (uint32_t c = lane * kValues; c < 2 * head_dim; c += kWarp * kValues) {
      StoreUnit<T>(row + c * sizeof(T), from(c));
    }
  } else {
    using Bits = decltype(StoredBits<T>(0.0f));
    for (uint32_t c = lane; c < 2 * head_dim; c += kWarp) {
      reinterpret_cast<Bits*>(row)[c] = StoredBits<T>(*from(c));
    }
  }
}

// Calls use(item) in every thread, for every item that has the token, in order. The whole block
// looks at once. `found` is kWarps words of shared memory.
template <typename Item, typename Use>
__device__ void ForItemsOf(uint32_t token, const Item* items, uint32_t count, uint32_t* found,
                           const Use& use) {
  for (uint32_t base = 0; base < count; base += kThreads) {
    const uint32_t i = base + threadIdx.x;
    // A token before the span wraps around.
    const bool has = i < count && token - items[i].span.first < items[i].span.tokens;
    const uint32_t ballot = __ballot_sync(0xFFFFFFFF, has);
    __syncthreads();  // nobody reads what was found before
    if (threadIdx.x % kWarp == 0) found[threadIdx.x / kWarp] = ballot;
    __syncthreads();
    for (uint32_t warp = 0; warp < kWarps; ++warp) {
      for (uint32_t left = found[warp]; left != 0; left &= left - 1) {
        use(items[base + warp * kWarp + __ffs(left) - 1]);
      }
    }
  }
}

// Writes the block's KV head of its token wherever the items want it. `key` is in shared memory and
// complete; `values` is the step's V.
__device__ void WriteTargets(const Targets& targets, const float* key, const float* values) {
  __shared__ uint32_t found[kWarps];
  const uint32_t token = blockIdx.x, kv_head = blockIdx.y, head_dim = targets.head_dim;
  uint32_t turn = 0;  // warps take rows and coded labels in turn
  ForItemsOf(token, targets.rows, targets.row_items, found, [&](const RowTarget& item) {
    if (turn++ % kWarps != threadIdx.x / kWarp) return;
    std::byte* row = item.Row(kv_head, token);
    const float* value = values + (size_t{token} * gridDim.y + kv_head) * head_dim;
    switch (item.dtype) {
      case DType::kF32:
        return StoreRow<float>(row, key, value, head_dim);
      case DType::kF16:
        return StoreRow<__half>(row, key, value, head_dim);
      case DType::kBF16:
        return StoreRow<__nv_bfloat16>(row, key, value, head_dim);
    }
  });
  ForItemsOf(token, targets.labels, targets.label_items, found, [&](const LabelTarget& item) {
    const uint32_t position = item.span.position + (token - item.span.first);
    const uint32_t channels = item.labels.channels, token_of_page = position % kBlockTokens;
    std::byte* const head = item.labels.Head(kv_head, position / kBlockTokens);
    const uint16_t* const list = targets.channels + size_t{kv_head} * channels;
    const auto value = [&](uint32_t c) { return RoundedTo(targets.row_dtype, key[list[c]]); };
    if (item.labels.bits == 16) {
      auto* const values = reinterpret_cast<uint16_t*>(head) + token_of_page;
      for (uint32_t c = threadIdx.x; c < channels; c += kThreads) {
        values[c * kBlockTokens] = StoredBits<__nv_bfloat16>(value(c));
      }
    } else if (turn++ % kWarps == threadIdx.x / kWarp) {
      codes::StoreLabel({head}, token_of_page, channels, item.labels.bits, value);
    }
  });
}

__global__ void __launch_bounds__(kThreads)
    AppendKernel(Targets targets, const float* k, const float* v) {
  BeginKernel();
  __shared__ alignas(16) float key[kMaxHeadDim];
  const size_t at = (size_t{blockIdx.x} * gridDim.y + blockIdx.y) * targets.head_dim;
  for (uint32_t c = threadIdx.x; c < targets.head_dim; c += kThreads) key[c] = k[at + c];
  __syncthreads();
  WriteTargets(targets, key, v);
}

// The block also turns the query heads of its KV head.
template <uint32_t kWidth>
__global__ void __launch_bounds__(kThreads)
    RotateAppendKernel(Targets targets, float* q, float* k, const float* v,
                       const uint32_t* positions, const float* inverse_frequency, uint32_t group) {
  BeginKernel();
  NextMayBegin();
  __shared__ Turns turns;
  __shared__ alignas(16) float key[kMaxHeadDim];
  const uint32_t half = targets.head_dim / 2;
  const size_t head = size_t{blockIdx.x} * gridDim.y + blockIdx.y;
  const uint32_t pair = threadIdx.x;
  if (pair < half) {
    float* row = k + head * 2 * half;
    float a = row[pair], b = row[pair + half];
    const float2 turn = TurnOf(positions[blockIdx.x], inverse_frequency[pair]);
    Turn(a, b, turn.x, turn.y);
    row[pair] = key[pair] = a;
    row[pair + half] = key[pair + half] = b;
    turns.cosines[pair] = turn.x;
    turns.sines[pair] = turn.y;
  }
  __syncthreads();
  TurnHeads<kWidth>(q + head * group * 2 * half, group, half, turns);
  WriteTargets(targets, key, v);
}

// ---- Tables

template <typename Item>
uint32_t End(std::span<const Item> items) {
  uint32_t end = 0;
  for (const Item& item : items) end = std::max(end, item.span.first + item.span.tokens);
  return end;
}

void PutRows(std::span<const AppendRowsArgs::Item> items, uint32_t kv_heads, uint32_t head_dim,
             Targets& targets, Tape& tape) {
  std::vector<RowTarget> rows;
  for (const AppendRowsArgs::Item& item : items) {
    CHECK_EQ(item.rows.layout->kv_heads, kv_heads);
    CHECK_EQ(item.rows.layout->head_dim, head_dim);
    if (item.slots) CHECK_EQ(item.span.tokens, 1u);
    rows.push_back(
        {item.span, item.rows.layout->dtype, ViewOf(item.rows), item.slots, item.slot_stride});
  }
  targets.rows = tape.Params(rows);
  targets.row_items = static_cast<uint32_t>(rows.size());
}

void PutLabels(std::span<const AppendLabelsArgs::Item> items, uint32_t kv_heads, Targets& targets,
               Tape& tape) {
  std::vector<LabelTarget> labels;
  for (const AppendLabelsArgs::Item& item : items) {
    CHECK_EQ(item.labels.layout->kv_heads, kv_heads);
    labels.push_back({item.span, ViewOf(item.labels)});
  }
  targets.labels = tape.Params(labels);
  targets.label_items = static_cast<uint32_t>(labels.size());
}

bool Fours(const float* x, uint32_t half) {
  return half % 4 == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0;
}

void CheckHeads(uint32_t head_dim, std::span<const float> inverse_frequency) {
  CHECK_LE(head_dim, kMaxHeadDim);
  CHECK_EQ(head_dim % 2, 0u);
  CHECK_EQ(inverse_frequency.size(), head_dim / 2);
}

}  // namespace

void Rope(const RopeArgs& args, Tape& tape) {
  const auto tokens = static_cast<uint32_t>(args.positions.size());
  if (tokens == 0 || args.heads == 0) return;
  CheckHeads(args.head_dim, args.inverse_frequency);
  const uint32_t half = args.head_dim / 2;
  tape.Launch(Fours(args.x, half) ? RopeKernel<4> : RopeKernel<1>,
              dim3(tokens, (args.heads + kRopeHeads - 1) / kRopeHeads), kThreads, 0, args.x,
              tape.Params(args.positions), tape.Params(args.inverse_frequency), args.heads, half);
}

void AppendRows(const AppendRowsArgs& args, Tape& tape) {
  const uint32_t tokens = End(args.items);
  if (tokens == 0) return;
  const RowLayout& layout = *args.items.front().rows.layout;
  CHECK_LE(layout.head_dim, kMaxHeadDim);
  Targets targets;
  targets.head_dim = layout.head_dim;
  PutRows(args.items, layout.kv_heads, layout.head_dim, targets, tape);
  tape.Launch(AppendKernel, dim3(tokens, layout.kv_heads), kThreads, 0, targets, args.k, args.v);
}

void AppendLabels(const AppendLabelsArgs& args, Tape& tape) {
  const uint32_t tokens = End(args.items);
  if (tokens == 0) return;
  CHECK_LE(args.head_dim, kMaxHeadDim);
  Targets targets;
  targets.head_dim = args.head_dim;
  targets.row_dtype = args.row_dtype;
  targets.channels = args.channels;
  PutLabels(args.items, args.kv_heads, targets, tape);
  tape.Launch(AppendKernel, dim3(tokens, args.kv_heads), kThreads, 0, targets, args.k, nullptr);
}

void RotateAppend(const RotateAppendArgs& args, Tape& tape) {
  const auto tokens = static_cast<uint32_t>(args.positions.size());
  if (tokens == 0) return;
  CheckHeads(args.head_dim, args.inverse_frequency);
  CHECK_EQ(args.heads % args.kv_heads, 0u);
  CHECK_LE(End(args.rows), tokens);
  CHECK_LE(End(args.labels), tokens);
  Targets targets;
  targets.head_dim = args.head_dim;
  targets.row_dtype = args.row_dtype;
  targets.channels = args.channels;
  PutRows(args.rows, args.kv_heads, args.head_dim, targets, tape);
  PutLabels(args.labels, args.kv_heads, targets, tape);
  tape.Launch(Fours(args.q, args.head_dim / 2) ? RotateAppendKernel<4> : RotateAppendKernel<1>,
              dim3(tokens, args.kv_heads), kThreads, 0, targets, args.q, args.k, args.v,
              tape.Params(args.positions), tape.Params(args.inverse_frequency),
              args.heads / args.kv_heads);
}

}  // namespace sparsekv::cuda
