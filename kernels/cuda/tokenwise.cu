#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/limits.h"
#include "kernels/cuda/begin_kernel.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/tables.cuh"

// What is done to each token's row alone, and the prediction's small operations. All are bound by
// the bytes they move, or by the launch. Rows are taken in fours; where a row's length or address
// does not allow vectors of four, the same thread takes the same four one by one, in the same
// order.
namespace sparsekv::cuda {
namespace {

constexpr uint32_t kThreads = 256;
constexpr uint32_t kWarp = 32;
constexpr uint32_t kMostWarps = 32;
constexpr uint32_t kAllLanes = 0xFFFFFFFF;

uint32_t CeilDiv(size_t a, size_t b) { return static_cast<uint32_t>((a + b - 1) / b); }

// May every row of `width` values be taken in vectors of four?
template <typename T>
bool Fours(const T* rows, size_t width) {
  return width % 4 == 0 && reinterpret_cast<uintptr_t>(rows) % (4 * sizeof(T)) == 0;
}

// row[i .. i + 4), zero beyond the width.
template <bool kFours, typename T>
__device__ float4 Load4(const T* row, size_t i, size_t width) {
  T value[4];
  if constexpr (kFours && sizeof(T) == 4) {
    return *reinterpret_cast<const float4*>(row + i);
  } else if constexpr (kFours) {
    const uint2 bits = *reinterpret_cast<const uint2*>(row + i);
    memcpy(value, &bits, sizeof(bits));
    return {ToFloat(value[0]), ToFloat(value[1]), ToFloat(value[2]), ToFloat(value[3])};
  } else {
    const auto at = [&](size_t j) { return j < width ? ToFloat(row[j]) : 0.0f; };
    return {at(i), at(i + 1), at(i + 2), at(i + 3)};
  }
}

template <bool kFours>
__device__ void Store4(float* row, size_t i, size_t width, float4 value) {
  if constexpr (kFours) {
    *reinterpret_cast<float4*>(row + i) = value;
  } else {
    row[i] = value.x;
    if (i + 1 < width) row[i + 1] = value.y;
    if (i + 2 < width) row[i + 2] = value.z;
    if (i + 3 < width) row[i + 3] = value.w;
  }
}

// Sums each of the values over the block's threads, in an order that the block's size decides;
// every thread gets the sums. To be called once by a kernel.
template <uint32_t kCount, typename V>
__device__ void SumOverBlock(V (&values)[kCount]) {
  __shared__ V of_warps[kCount][kMostWarps];
  const uint32_t lane = threadIdx.x % kWarp;
#pragma unroll
  for (uint32_t n = 0; n < kCount; ++n) {
    for (uint32_t step = kWarp / 2; step > 0; step /= 2) {
      values[n] += __shfl_xor_sync(kAllLanes, values[n], step);
    }
    if (lane == 0) of_warps[n][threadIdx.x / kWarp] = values[n];
  }
  __syncthreads();
#pragma unroll
  for (uint32_t n = 0; n < kCount; ++n) {
    values[n] = lane < blockDim.x / kWarp ? of_warps[n][lane] : V{0};
    for (uint32_t step = kWarp / 2; step > 0; step /= 2) {
      values[n] += __shfl_xor_sync(kAllLanes, values[n], step);
    }
  }
}

// Bytes: 32 per unit of 16.
__global__ void __launch_bounds__(kThreads)
    CopyBytesKernel(uint4* to, const uint4* from, size_t count) {
  BeginKernel();
  NextMayBegin();
  const size_t i = size_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) to[i] = from[i];
}

// A block takes 4 * kThreads values of a token. Bytes: sizeof(T) + 4 per value.
template <bool kFours, typename T>
__global__ void __launch_bounds__(kThreads)
    EmbedKernel(const uint32_t* ids, const T* table, uint32_t width, float* out) {
  BeginKernel();
  NextMayBegin();
  const size_t i = 4 * (size_t{blockIdx.y} * kThreads + threadIdx.x);
  if (i >= width) return;
  const float4 value = Load4<kFours>(table + size_t{ids[blockIdx.x]} * width, i, width);
  Store4<kFours>(out + size_t{blockIdx.x} * width, i, width, value);
}

// A block per token; its threads keep to their own values, so `out` may be `x`. Bytes: 4 + 4 per
// value, and the weights; the second reading comes from the cache.
template <bool kFours, typename W>
__global__ void __launch_bounds__(kMostWarps* kWarp)
    RmsNormKernel(const float* x, const W* weight, uint32_t width, float epsilon, float* out) {
  BeginKernel();
  NextMayBegin();
  x += size_t{blockIdx.x} * width;
  out += size_t{blockIdx.x} * width;
  float squares[1] = {0.0f};
  for (uint32_t i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
    const float4 value = Load4<kFours>(x, i, width);
    squares[0] = __fmaf_rn(value.x, value.x, squares[0]);
    squares[0] = __fmaf_rn(value.y, value.y, squares[0]);
    squares[0] = __fmaf_rn(value.z, value.z, squares[0]);
    squares[0] = __fmaf_rn(value.w, value.w, squares[0]);
  }
  SumOverBlock(squares);
  const float scale = 1.0f / sqrtf(squares[0] / static_cast<float>(width) + epsilon);
  for (uint32_t i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
    const float4 value = Load4<kFours>(x, i, width);
    const float4 by = Load4<kFours>(weight, i, width);
    Store4<kFours>(out, i, width,
                   {value.x * scale * by.x, value.y * scale * by.y, value.z * scale * by.z,
                    value.w * scale * by.w});
  }
}

__device__ float SwiGluOf(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }

// Bytes: 12 per value.
template <bool kFours>
__global__ void __launch_bounds__(kThreads)
    SwiGluKernel(float* gate, const float* up, size_t count) {
  BeginKernel();
  const size_t stride = size_t{4} * kThreads * gridDim.x;
  for (size_t i = 4 * (size_t{blockIdx.x} * kThreads + threadIdx.x); i < count; i += stride) {
    const float4 g = Load4<kFours>(gate, i, count);
    const float4 u = Load4<kFours>(up, i, count);
    Store4<kFours>(
        gate, i, count,
        {SwiGluOf(g.x, u.x), SwiGluOf(g.y, u.y), SwiGluOf(g.z, u.z), SwiGluOf(g.w, u.w)});
  }
}

// A token's drift: rows of the layer and of the next one follow each other.
struct Drift {
  float* here = nullptr;  // null = the token has none
  float rate = 0;
};

// Rounded after every operation, as the other backends do: what is kept from step to step stays the
// same on all of them.
__device__ float Followed(float drift, float rate, float x, float previous) {
  const float away = __fsub_rn(__fsub_rn(x, previous), drift);
  return __fadd_rn(drift, __fmul_rn(rate, away));
}

// A block takes 4 * kThreads values of a token. Bytes: 8 per value, 24 with a drift.
template <bool kFours>
__global__ void __launch_bounds__(kThreads)
    ExtrapolateKernel(const float* x, const float* previous, const Drift* drifts, uint32_t width,
                      float* out) {
  BeginKernel();
  NextMayBegin();
  const size_t i = 4 * (size_t{blockIdx.y} * kThreads + threadIdx.x);
  if (i >= width) return;
  const size_t row = size_t{blockIdx.x} * width;
  const Drift drift = drifts[blockIdx.x];
  float4 value = Load4<kFours>(x + row, i, width);
  if (drift.here) {
    if (previous) {
      const float4 before = Load4<kFours>(previous + row, i, width);
      const float4 old = Load4<kFours>(drift.here, i, width);
      Store4<kFours>(drift.here, i, width,
                     {Followed(old.x, drift.rate, value.x, before.x),
                      Followed(old.y, drift.rate, value.y, before.y),
                      Followed(old.z, drift.rate, value.z, before.z),
                      Followed(old.w, drift.rate, value.w, before.w)});
    }
    const float4 next = Load4<kFours>(drift.here + width, i, width);
    value = {value.x + next.x, value.y + next.y, value.z + next.z, value.w + next.w};
  }
  Store4<kFours>(out + row, i, width, value);
}

// A warp per query head, put together in shared memory. Bytes: 4 per channel of the query out, 4
// per channel that is given in.
__global__ void __launch_bounds__(kThreads)
    ExpandQueryKernel(const float* compact, const uint16_t* channels, size_t rows,
                      uint32_t kv_heads, uint32_t group, uint32_t head_dim, uint32_t width,
                      float* q) {
  BeginKernel();
  NextMayBegin();
  __shared__ float spread[kThreads / kWarp][kMaxHeadDim];
  const uint32_t lane = threadIdx.x % kWarp;
  const size_t row = size_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= rows) return;  // the whole warp, and no barrier of the block follows
  float* to = spread[threadIdx.x / kWarp];
  for (uint32_t c = lane; c < head_dim; c += kWarp) to[c] = 0.0f;
  __syncwarp();
  const uint32_t kv_head = static_cast<uint32_t>(row / group % kv_heads);
  for (uint32_t j = lane; j < width; j += kWarp) {
    to[channels[size_t{kv_head} * width + j]] = compact[row * width + j];
  }
  __syncwarp();
  for (uint32_t c = lane; c < head_dim; c += kWarp) q[row * head_dim + c] = to[c];
}

// A block per token; products of floats are exact in double. Bytes: 8 per value; FLOPs in
// double: 6.
template <bool kFours>
__global__ void __launch_bounds__(kThreads)
    CosineKernel(const float* a, const float* b, uint32_t width, float* out) {
  BeginKernel();
  a += size_t{blockIdx.x} * width;
  b += size_t{blockIdx.x} * width;
  double sums[3] = {0, 0, 0};  // a . b, a . a, b . b
  const auto add = [&](double x, double y) {
    sums[0] = __fma_rn(x, y, sums[0]);
    sums[1] = __fma_rn(x, x, sums[1]);
    sums[2] = __fma_rn(y, y, sums[2]);
  };
  for (uint32_t i = 4 * threadIdx.x; i < width; i += 4 * kThreads) {
    const float4 x = Load4<kFours>(a, i, width);
    const float4 y = Load4<kFours>(b, i, width);
    add(x.x, y.x);
    add(x.y, y.y);
    add(x.z, y.z);
    add(x.w, y.w);
  }
  SumOverBlock(sums);
  if (threadIdx.x > 0) return;
  const bool both = sums[1] > 0 && sums[2] > 0;
  out[blockIdx.x] = both ? static_cast<float>(sums[0] / (sqrt(sums[1]) * sqrt(sums[2]))) : 0.0f;
}

__device__ bool Contains(const uint32_t* list, uint32_t count, uint32_t value) {
  uint32_t from = 0, to = count;  // the first that is not below `value` lies in [from, to]
  while (from < to) {
    const uint32_t middle = from + (to - from) / 2;
    if (list[middle] < value) {
      from = middle + 1;
    } else {
      to = middle;
    }
  }
  return from < count && list[from] == value;
}

constexpr uint32_t kOverlapThreads = 1024;

// A block per item and KV head; a thread looks for its values of a in b, which stays in the cache.
// Bytes: 4 per value of both lists.
__global__ void __launch_bounds__(kOverlapThreads) OverlapKernel(const OverlapArgs::Item* items) {
  BeginKernel();
  __shared__ uint32_t total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  const OverlapArgs::Item& item = items[blockIdx.x];
  const uint32_t* a = item.a + blockIdx.y * item.a_stride;
  const uint32_t* b = item.b + blockIdx.y * item.b_stride;
  uint32_t common = 0;
  for (uint32_t i = threadIdx.x; i < item.a_count; i += kOverlapThreads) {
    if (Contains(b, item.b_count, a[i])) ++common;
  }
  common = __reduce_add_sync(kAllLanes, common);
  if (threadIdx.x % kWarp == 0 && common > 0) atomicAdd(&total, common);
  __syncthreads();
  if (threadIdx.x == 0) item.common[blockIdx.y] = total;
}

}  // namespace

void Embed(const EmbedArgs& args, Tape& tape) {
  const WeightView& table = args.table;
  if (args.ids.empty() || table.cols == 0) return;
  for (uint32_t id : args.ids) CHECK_LT(id, table.rows);
  const uint32_t* ids = tape.Params(args.ids);
  const dim3 grid(static_cast<uint32_t>(args.ids.size()), CeilDiv(table.cols, 4 * kThreads));
  WithType(table.dtype, [&](auto type) {
    using T = decltype(type);
    const auto* from = static_cast<const T*>(table.data);
    const bool fours = Fours(from, table.cols) && Fours(args.out, table.cols);
    tape.Launch(fours ? EmbedKernel<true, T> : EmbedKernel<false, T>, grid, kThreads, 0, ids, from,
                table.cols, args.out);
  });
}

void RmsNorm(const RmsNormArgs& args, Tape& tape) {
  const uint32_t width = args.weight.cols;
  if (args.tokens == 0 || width == 0) return;
  // Two fours of a row per thread where that makes a block; the order of the sum hangs on it, so it
  // depends on the width alone.
  const uint32_t threads = kWarp * std::min(kMostWarps, CeilDiv(width, 8 * kWarp));
  WithType(args.weight.dtype, [&](auto type) {
    using W = decltype(type);
    const auto* weight = static_cast<const W*>(args.weight.data);
    const bool fours = Fours(args.x, width) && Fours(args.out, width) && Fours(weight, width);
    tape.Launch(fours ? RmsNormKernel<true, W> : RmsNormKernel<false, W>, args.tokens, threads, 0,
                args.x, weight, width, args.epsilon, args.out);
  });
}

void SwiGlu(const SwiGluArgs& args, Tape& tape) {
  const size_t count = size_t{args.tokens} * args.width;
  if (count == 0) return;
  const bool fours = Fours(args.gate, count) && Fours(args.up, count);
  const auto most = static_cast<uint32_t>(8 * tape.multiprocessors());
  tape.Launch(fours ? SwiGluKernel<true> : SwiGluKernel<false>,
              std::min(most, CeilDiv(count, 4 * kThreads)), kThreads, 0, args.gate, args.up, count);
}

void CopyBytes(void* to, const void* from, size_t bytes, Tape& tape) {
  const auto bits = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | bytes;
  constexpr size_t kMost = size_t{1} << 20;  // a kernel that leaves most of the device free
  if (bits % sizeof(uint4) != 0 || bytes > kMost) return tape.Copy(to, from, bytes);
  const size_t count = bytes / sizeof(uint4);
  if (count == 0) return;
  tape.Launch(CopyBytesKernel, CeilDiv(count, kThreads), kThreads, 0, static_cast<uint4*>(to),
              static_cast<const uint4*>(from), count);
}

void Extrapolate(const ExtrapolateArgs& args, Tape& tape) {
  const uint32_t width = args.width;
  if (args.tokens == 0 || width == 0) return;
  const float* previous = args.layer > 0 ? args.previous : nullptr;
  bool fours = Fours(args.x, width) && Fours(previous, width) && Fours(args.out, width);
  std::vector<Drift> drifts(args.tokens);
  for (const ExtrapolateArgs::Item& item : args.items) {
    CHECK_LT(item.token, args.tokens);
    CHECK(drifts[item.token].here == nullptr);
    drifts[item.token] = {item.drift + size_t{args.layer} * width, item.rate};
    fours = fours && Fours(item.drift, width);
  }
  tape.Launch(fours ? ExtrapolateKernel<true> : ExtrapolateKernel<false>,
              dim3(args.tokens, CeilDiv(width, 4 * kThreads)), kThreads, 0, args.x, previous,
              tape.Params(drifts), width, args.out);
}

void ExpandQuery(const ExpandQueryArgs& args, Tape& tape) {
  CHECK_LE(args.head_dim, kMaxHeadDim);
  const size_t rows = size_t{args.tokens} * args.kv_heads * args.group;
  if (rows == 0) return;
  tape.Launch(ExpandQueryKernel, CeilDiv(rows, kThreads / kWarp), kThreads, 0, args.compact,
              args.channels, rows, args.kv_heads, args.group, args.head_dim, args.width, args.q);
}

void Cosine(const CosineArgs& args, Tape& tape) {
  if (args.tokens == 0) return;
  const bool fours = Fours(args.a, args.width) && Fours(args.b, args.width);
  tape.Launch(fours ? CosineKernel<true> : CosineKernel<false>, args.tokens, kThreads, 0, args.a,
              args.b, args.width, args.out);
}

void Overlap(const OverlapArgs& args, Tape& tape) {
  if (args.items.empty() || args.kv_heads == 0) return;
  tape.Launch(OverlapKernel, dim3(static_cast<uint32_t>(args.items.size()), args.kv_heads),
              kOverlapThreads, 0, tape.Params(args.items));
}

}  // namespace sparsekv::cuda
