#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/begin_kernel.cuh"

// Operands of the tensor cores' products of few tokens (m16n8k16: weights are A, tokens the columns
// of B), in the weights' type T. A lane's 16 bytes of a row are eight neighbouring inputs; they
// serve as the k positions 2t, 2t+1, 2t+8, 2t+9 of two products, and inputs of tokens are dealt out
// the same way, so that nothing is shuffled. An input is the sum of two numbers of T, high and low,
// a product each: 16 bits of it are kept.
namespace sparsekv::cuda::few {

constexpr uint32_t kChunk = 32;  // inputs that a warp multiplies at once
constexpr uint32_t kTileRows = 16;
constexpr uint32_t kTileTokens = 8;

template <typename T>
struct Pair;
template <>
struct Pair<__nv_bfloat16> {
  static __device__ void Split(float a, float b, uint32_t& high, uint32_t& low) {
    const __nv_bfloat162 h = __floats2bfloat162_rn(a, b);
    const __nv_bfloat162 l = __floats2bfloat162_rn(a - __low2float(h), b - __high2float(h));
    high = reinterpret_cast<const uint32_t&>(h);
    low = reinterpret_cast<const uint32_t&>(l);
  }
  static __device__ void Multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                  uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};
template <>
struct Pair<__half> {
  static __device__ float Bounded(float x) {  // NaN stays
    return fabsf(x) > 65504.0f ? copysignf(65504.0f, x) : x;
  }
  static __device__ void Split(float a, float b, uint32_t& high, uint32_t& low) {
    const __half2 h = __floats2half2_rn(Bounded(a), Bounded(b));
    const __half2 l = __floats2half2_rn(Bounded(a - __low2float(h)), Bounded(b - __high2float(h)));
    high = reinterpret_cast<const uint32_t&>(h);
    low = reinterpret_cast<const uint32_t&>(l);
  }
  static __device__ void Multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                  uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

// Eight neighbouring inputs of a token.
struct Inputs {
  uint4 high, low;

  template <typename T>
  __device__ static Inputs Of(const float4& first, const float4& second) {
    Inputs inputs;
    Pair<T>::Split(first.x, first.y, inputs.high.x, inputs.low.x);
    Pair<T>::Split(first.z, first.w, inputs.high.y, inputs.low.y);
    Pair<T>::Split(second.x, second.y, inputs.high.z, inputs.low.z);
    Pair<T>::Split(second.z, second.w, inputs.high.w, inputs.low.w);
    return inputs;
  }
};

// Sums of 16 rows and 8 tokens, of the high and the low numbers: two chains of products, as one
// would keep the next waiting.
struct TileSums {
  float high[4] = {}, low[4] = {};

  // += rows . inputs; a lane has rows g and g + 8, token g.
  template <typename T>
  __device__ void Add(const uint4& row, const uint4& row8, const Inputs& x) {
    const uint32_t first[4] = {row.x, row8.x, row.y, row8.y};
    const uint32_t second[4] = {row.z, row8.z, row.w, row8.w};
    Pair<T>::Multiply(high, first, x.high.x, x.high.y);
    Pair<T>::Multiply(low, first, x.low.x, x.low.y);
    Pair<T>::Multiply(high, second, x.high.z, x.high.w);
    Pair<T>::Multiply(low, second, x.low.z, x.low.w);
  }
};

// What the lanes of a warp need of a chunk of inputs, of 8 tokens: [high, low][lane]. Tokens follow
// each other within a chunk: [chunk][8 tokens][high, low][lane], zeros beyond the last of either.
constexpr uint32_t kOperands = 64;  // uint4s of a chunk and 8 tokens

// x [tokens, inputs] as operands: `chunks` of them, 8 * tiles tokens. Bytes: 8 per value.
template <typename T>
__global__ void __launch_bounds__(256) SplitKernel(const float* x, uint32_t tokens, uint32_t inputs,
                                                   uint32_t chunks, uint32_t tiles, uint4* to) {
  BeginKernel();
  NextMayBegin();
  const uint32_t i = blockIdx.x * 256 + threadIdx.x;
  const uint32_t lane = i % 32, tile = i / 32 % tiles, chunk = i / 32 / tiles;
  if (chunk >= chunks) return;
  const uint32_t token = tile * kTileTokens + lane / 4, at = chunk * kChunk + lane % 4 * 8;
  float4 values[2] = {};
  if (token < tokens && at < inputs) {
    const auto* from = reinterpret_cast<const float4*>(x + uint64_t{token} * inputs + at);
    values[0] = from[0];
    values[1] = from[1];
  }
  const Inputs operands = Inputs::Of<T>(values[0], values[1]);
  uint4* own = to + (uint64_t{chunk} * tiles + tile) * kOperands + lane;
  own[0] = operands.high;
  own[32] = operands.low;
}

}  // namespace sparsekv::cuda::few
