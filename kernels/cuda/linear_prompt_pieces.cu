#include <cstring>
#include <type_traits>

#include "base/check.h"
#include "kernels/cuda/begin_kernel.cuh"
#include "kernels/cuda/linear_prompt_pieces.h"
#include "kernels/cuda/tables.cuh"

namespace sparsekv::cuda {
namespace {

constexpr uint32_t kThreads = 256;
constexpr uint32_t kValues = 8;  // per thread when a piece is filled

bool AlignedTo(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

uint32_t CeilDiv(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

// NaN stays NaN.
template <typename T>
__device__ T Saturated(float value) {
  if constexpr (std::is_same_v<T, float>) {
    return value;
  } else {
    constexpr float kLargest = std::is_same_v<T, __half> ? 65504.0f : 0x1.FEp127f;
    return FromFloat<T>(fabsf(value) > kLargest ? copysignf(kLargest, value) : value);
  }
}

// NaN has no rest; the rest of what is too large is bounded too.
template <typename T>
__device__ T Rest(float value) {
  const float high = ToFloat<T>(Saturated<T>(value));
  return Saturated<T>(value != value ? 0.0f : __fsub_rn(value, high));
}

// A thread makes kValues neighbours of one row and stores them in units of 16 bytes.
// Bytes: sizeof(From) in and sizeof(To) out per value.
template <typename From, typename To, Half kHalf>
__global__ void __launch_bounds__(kThreads)
    PadKernel(const From* from, uint32_t rows, uint32_t cols, uint32_t stride, bool whole, To* to) {
  BeginKernel();
  const uint32_t row = blockIdx.x;
  const uint32_t first = (blockIdx.y * kThreads + threadIdx.x) * kValues;
  if (first >= stride) return;
  From in[kValues];
  memset(in, 0, sizeof(in));
  if (row < rows) {
    const From* source = from + size_t{row} * cols;
    if (whole) {  // cols == stride, and what follows is aligned
      uint4 words[sizeof(in) / 16];
#pragma unroll
      for (uint32_t i = 0; i < sizeof(in) / 16; ++i) {
        words[i] = reinterpret_cast<const uint4*>(source + first)[i];
      }
      memcpy(in, words, sizeof(in));
    } else {
#pragma unroll
      for (uint32_t i = 0; i < kValues; ++i) {
        if (first + i < cols) in[i] = source[first + i];
      }
    }
  }
  To out[kValues];
#pragma unroll
  for (uint32_t i = 0; i < kValues; ++i) {
    if constexpr (std::is_same_v<From, To>) {
      out[i] = in[i];
    } else {
      out[i] = kHalf == Half::kHigh ? Saturated<To>(in[i]) : Rest<To>(in[i]);
    }
  }
  uint4 words[sizeof(out) / 16];
  memcpy(words, out, sizeof(out));
  auto* target = reinterpret_cast<uint4*>(to + size_t{row} * stride + first);
#pragma unroll
  for (uint32_t i = 0; i < sizeof(out) / 16; ++i) target[i] = words[i];
}

template <typename From, typename To, Half kHalf>
void Pad(const From* from, uint32_t rows, uint32_t cols, uint32_t all_rows, uint32_t stride,
         std::byte* to, Tape& tape) {
  CHECK_EQ(stride % kValues, 0u);
  const bool whole = cols == stride && AlignedTo(from, 16);
  tape.Launch(PadKernel<From, To, kHalf>, dim3(all_rows, CeilDiv(stride, kThreads * kValues)),
              kThreads, 0, from, rows, cols, stride, whole, reinterpret_cast<To*>(to));
}

// kWidth neighbours per thread. Bytes: 8 per value, 12 with kAdd.
template <uint32_t kWidth, bool kAdd>
__global__ void __launch_bounds__(kThreads)
    TakeKernel(const float* results, uint32_t stride, uint32_t outputs, float* y, size_t y_stride) {
  BeginKernel();
  const uint32_t first = (blockIdx.y * kThreads + threadIdx.x) * kWidth;
  if (first >= outputs) return;
  const float* from = results + size_t{blockIdx.x} * stride + first;
  float* to = y + blockIdx.x * y_stride + first;
  if constexpr (kWidth == 4) {
    float4 value = *reinterpret_cast<const float4*>(from);
    if constexpr (kAdd) {
      const float4 old = *reinterpret_cast<const float4*>(to);
      value = {old.x + value.x, old.y + value.y, old.z + value.z, old.w + value.w};
    }
    *reinterpret_cast<float4*>(to) = value;
  } else {
    *to = kAdd ? *to + *from : *from;
  }
}

}  // namespace

void FillPiece(const float* x, Half half, uint32_t tokens, uint32_t inputs, uint32_t stride,
               DType dtype, std::byte* piece, Tape& tape) {
  CHECK(half == Half::kHigh || SizeOf(dtype) == 2);
  WithType(dtype, [&](auto type) {
    using T = decltype(type);
    if (half == Half::kHigh) {
      Pad<float, T, Half::kHigh>(x, tokens, inputs, kPieceTokens, stride, piece, tape);
    } else {
      Pad<float, T, Half::kLow>(x, tokens, inputs, kPieceTokens, stride, piece, tape);
    }
  });
}

void PadWeights(const void* weights, uint32_t rows, uint32_t cols, uint32_t stride, DType dtype,
                std::byte* padded, Tape& tape) {
  WithType(dtype, [&](auto type) {
    using T = decltype(type);
    Pad<T, T, Half::kHigh>(static_cast<const T*>(weights), rows, cols, rows, stride, padded, tape);
  });
}

void TakeResults(const float* results, uint32_t stride, uint32_t tokens, uint32_t outputs, float* y,
                 size_t y_stride, bool add, Tape& tape) {
  const bool whole = stride % 4 == 0 && outputs % 4 == 0 && y_stride % 4 == 0 && AlignedTo(y, 16);
  const auto kernel = whole ? (add ? TakeKernel<4, true> : TakeKernel<4, false>)
                            : (add ? TakeKernel<1, true> : TakeKernel<1, false>);
  const uint32_t per_block = kThreads * (whole ? 4 : 1);
  tape.Launch(kernel, dim3(tokens, CeilDiv(outputs, per_block)), kThreads, 0, results, stride,
              outputs, y, y_stride);
}

}  // namespace sparsekv::cuda
