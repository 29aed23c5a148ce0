#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/cta.cuh"
#include "kernels/label_codes.h"

// kernels/label_codes.h on the device: labels and queries get the same codes. Every operation is an
// intrinsic, so that none is fused with another.
namespace sparsekv::cuda::codes {

// NaN fails every comparison; -0 + 0 is 0.
__device__ inline float Tame(float x) {
  if (x > kMostCoded) return kMostCoded;
  if (x < -kMostCoded) return -kMostCoded;
  return x == x ? __fadd_rn(x, 0.0f) : 0.0f;
}

// To nearest even. `x` is a number.
__device__ inline int32_t ToCode(float x, float low, float high) {
  return static_cast<int32_t>(fminf(fmaxf(rintf(x), low), high));
}

__device__ inline float WarpMax(float value) {
#pragma unroll
  for (uint32_t step = kWarpThreads / 2; step > 0; step /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kWholeWarp, value, step));
  }
  return value;
}

// Where a page has the labels of one KV head.
struct Page {
  std::byte* head;

  __device__ uint16_t* Steps() const { return reinterpret_cast<uint16_t*>(head); }
  __device__ uint16_t* Leasts() const { return Steps() + kBlockTokens; }
  __device__ uint32_t* Words(uint32_t word) const {
    return reinterpret_cast<uint32_t*>(head) + (1 + word) * kBlockTokens;
  }
};

// Stores the label of the page's token, by one warp. value(c): of channel c.
template <typename Value>
__device__ void StoreLabel(Page page, uint32_t token, uint32_t channels, uint32_t bits,
                           const Value& value) {
  const uint32_t most = (1u << bits) - 1, in_word = 32 / bits;
  float low = kMostCoded, high = -kMostCoded;
  for (uint32_t c = LaneId(); c < channels; c += kWarpThreads) {
    low = fminf(low, Tame(value(c)));
    high = fmaxf(high, Tame(value(c)));
  }
  low = -WarpMax(-low);
  high = WarpMax(high);
  // Both are numbers, and -0 is none of them: what -low made of 0 is undone.
  const __half least_half = __float2half_rn(__fadd_rn(low, 0.0f));
  const __half step_half =
      __float2half_rn(__fdiv_rn(__fsub_rn(high, low), static_cast<float>(most)));
  const float least = __half2float(least_half), step = __half2float(step_half);
  if (LaneId() == 0) {
    page.Steps()[token] = __half_as_ushort(step_half);
    page.Leasts()[token] = __half_as_ushort(least_half);
  }
  // 32 channels at a time: whole words, whatever the bits.
  const uint32_t padded = (channels + in_word - 1) / in_word * in_word;
  for (uint32_t first = 0; first < padded; first += kWarpThreads) {
    const uint32_t c = first + LaneId();
    uint32_t word = 0;
    if (c < channels && step != 0) {
      const float steps = __fdiv_rn(__fsub_rn(Tame(value(c)), least), step);
      const auto code = static_cast<uint32_t>(ToCode(steps, 0.0f, static_cast<float>(most)));
      word = code << (c % in_word * bits);
    }
    for (uint32_t step_lanes = 1; step_lanes < in_word; step_lanes *= 2) {
      word |= __shfl_xor_sync(kWholeWarp, word, step_lanes);
    }
    if (c % in_word == 0 && c < padded) page.Words(c / in_word)[token] = word;
  }
}

// The sum of four products: of bytes without a sign and bytes with one.
__device__ inline int32_t Dot(uint32_t label_codes, uint32_t query_codes, int32_t sum) {
  asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(label_codes), "r"(query_codes));
  return sum;
}

// Words of four codes of a query head that labels of so many words are multiplied with: for each
// word of theirs 8 / bits, the i-th with what `word >> i x bits` has in the lowest bits of its
// bytes.
__device__ inline uint32_t QueryWords(uint32_t label_words, uint32_t bits) {
  return label_words * (8 / bits);
}

// The lowest `bits` of every byte.
__device__ inline uint32_t ByteMask(uint32_t bits) { return ((1u << bits) - 1) * 0x01010101u; }

// Codes one query head, by one warp: word(i) is its i-th word, unit and sum are the return value's.
struct QueryScale {
  float unit;
  float sum;
};
template <typename Value, typename Word>
__device__ QueryScale CodeQuery(uint32_t channels, uint32_t label_words, uint32_t bits,
                                const Value& value, const Word& word) {
  constexpr float kMost = 127.0f;
  const uint32_t parts = 8 / bits, in_word = 32 / bits;
  float most = 0;
  for (uint32_t c = LaneId(); c < channels; c += kWarpThreads) {
    most = fmaxf(most, fabsf(Tame(value(c))));
  }
  const float unit = __fdiv_rn(WarpMax(most), kMost);
  int32_t sum = 0;
  for (uint32_t i = LaneId(); i < label_words * parts; i += kWarpThreads) {
    uint32_t packed = 0;
    for (uint32_t byte = 0; byte < 4; ++byte) {
      const uint32_t c = i / parts * in_word + byte * parts + i % parts;
      if (c >= channels || unit == 0) continue;
      const int32_t code = ToCode(__fdiv_rn(Tame(value(c)), unit), -kMost, kMost);
      packed |= (static_cast<uint32_t>(code) & 0xFFu) << (8 * byte);
      sum += code;
    }
    word(i) = packed;
  }
  return {unit, static_cast<float>(WarpSum(sum))};
}

// CodedScore.
__device__ inline float Score(QueryScale query, float step, float least, int32_t dot) {
  const float by_steps = __fmul_rn(step, static_cast<float>(dot));
  const float by_least = __fmul_rn(least, query.sum);
  return __fmul_rn(query.unit, __fadd_rn(by_steps, by_least));
}

}  // namespace sparsekv::cuda::codes
