#pragma once

#include <math_constants.h>

#include "kernels/cuda/attention_prompt.cuh"
#include "kernels/cuda/begin_kernel.cuh"

// Dense attention over rows of float32, in float32.
namespace sparsekv::cuda::prompt {

// 16 threads share four query rows. Shared memory: the query rows, a KV tile of K, later of V, and
// the weights. Rows of K are 4 values longer than they need be, so that eight rows' vectors of one
// column lie in different banks.
template <uint32_t kDimOf, uint32_t kRowsOf, uint32_t kTileOf>
struct FmaGeometry {
  static constexpr uint32_t kDim = kDimOf;    // at least head_dim
  static constexpr uint32_t kRows = kRowsOf;  // query rows
  static constexpr uint32_t kTile = kTileOf;  // entries
  static constexpr uint32_t kThreads = kRows / 4 * 16;
  static constexpr uint32_t kStride = kDim + 4;
  static constexpr uint32_t kWeightStride = kTile + 4;
  static constexpr uint32_t kBytes = 4 * (kRows * kDim + kTile * kStride + kRows * kWeightStride);
  static_assert(kBlockTokens % kTile == 0 && kDim % 64 == 0);
};

__device__ inline float4 At4(const float* at) { return *reinterpret_cast<const float4*>(at); }

// K (offset 0) or V (offset head_dim) of the tile's entries; zeros beyond the list, where memory
// may hold NaN. Each warp takes whole rows.
template <typename G>
__device__ void CopyTile(const Task& task, const Work& work, uint32_t entry, uint32_t offset,
                         float* to) {
  const uint32_t row_values = 2 * task.head_dim;
  const auto* head =
      reinterpret_cast<const float*>(work.item.rows.Row(work.kv_head, entry)) + offset;
  for (uint32_t row = threadIdx.x / 32; row < G::kTile; row += G::kThreads / 32) {
    for (uint32_t c = threadIdx.x % 32 * 4; c < task.head_dim; c += 128) {
      CopyAsync(SharedAddress(to + row * G::kStride + c),
                reinterpret_cast<const std::byte*>(head + row * row_values + c),
                entry + row < work.length);
    }
  }
  WaitForCopies();
  __syncthreads();
}

// A thread's part: rows 4 * (thread / 16) + a, of the scores columns thread % 16 + 16 * b, of the
// output channels 4 * (thread % 16) + 64 * e and the next three.
template <typename G>
struct ThreadState {
  float4 out[4][G::kDim / 64];
  float highest[4];
  float total[4];
};
template <typename G>
using ThreadScores = float[4][G::kTile / 16];

template <typename G>
__device__ void ScoreRows(const float* queries, const float* keys, uint32_t head_dim,
                          ThreadScores<G>& scores) {
#pragma unroll
  for (uint32_t a = 0; a < 4; ++a) {
#pragma unroll
    for (uint32_t b = 0; b < G::kTile / 16; ++b) scores[a][b] = 0.0f;
  }
#pragma unroll 2
  for (uint32_t c = 0; c < head_dim; c += 4) {
    float4 q[4];
#pragma unroll
    for (uint32_t a = 0; a < 4; ++a) q[a] = At4(queries + a * G::kDim + c);
#pragma unroll
    for (uint32_t b = 0; b < G::kTile / 16; ++b) {
      const float4 k = At4(keys + b * 16 * G::kStride + c);
#pragma unroll
      for (uint32_t a = 0; a < 4; ++a) {
        float& sum = scores[a][b];
        sum = __fmaf_rn(q[a].x, k.x, sum);
        sum = __fmaf_rn(q[a].y, k.y, sum);
        sum = __fmaf_rn(q[a].z, k.z, sum);
        sum = __fmaf_rn(q[a].w, k.w, sum);
      }
    }
  }
}

// Writes the weights of the thread's scores, masked, for the 16 threads of its rows, and scales the
// state. `column`: the entry of the thread's first column; `row`: its first row.
template <typename G>
__device__ void WeighRows(const Task& task, const Work& work, uint32_t row, uint32_t column,
                          ThreadScores<G>& scores, float* weights, ThreadState<G>& state) {
#pragma unroll
  for (uint32_t a = 0; a < 4; ++a) {
    const uint32_t last = LastEntry(task, work, row + a);
    const float before = state.highest[a];
    float highest = before;
#pragma unroll
    for (uint32_t b = 0; b < G::kTile / 16; ++b) {
      if (column + b * 16 > last) scores[a][b] = -CUDART_INF_F;
      highest = fmaxf(highest, scores[a][b]);
    }
#pragma unroll
    for (uint32_t step = 8; step > 0; step /= 2) {
      highest = fmaxf(highest, __shfl_xor_sync(0xFFFFFFFF, highest, step));
    }
    state.highest[a] = highest;
    const float factor = Exp2(__fmul_rn(__fsub_rn(before, highest), task.scale));
    state.total[a] = __fmul_rn(state.total[a], factor);
#pragma unroll
    for (uint32_t b = 0; b < G::kTile / 16; ++b) {
      const float weight = Exp2(__fmul_rn(__fsub_rn(scores[a][b], highest), task.scale));
      state.total[a] = __fadd_rn(state.total[a], weight);
      weights[a * G::kWeightStride + b * 16] = weight;
    }
#pragma unroll
    for (float4& out : state.out[a]) {
      out = {__fmul_rn(out.x, factor), __fmul_rn(out.y, factor), __fmul_rn(out.z, factor),
             __fmul_rn(out.w, factor)};
    }
  }
}

__device__ inline void AddScaled(float weight, const float4& value, float4& sum) {
  sum = {__fmaf_rn(weight, value.x, sum.x), __fmaf_rn(weight, value.y, sum.y),
         __fmaf_rn(weight, value.z, sum.z), __fmaf_rn(weight, value.w, sum.w)};
}

template <typename G>
__device__ void AddRows(const float* weights, const float* values, ThreadState<G>& state) {
#pragma unroll 2
  for (uint32_t t = 0; t < G::kTile; t += 4) {
    float4 weight[4];
#pragma unroll
    for (uint32_t a = 0; a < 4; ++a) weight[a] = At4(weights + a * G::kWeightStride + t);
#pragma unroll
    for (uint32_t e = 0; e < G::kDim / 64; ++e) {
      const float* value = values + t * G::kStride + e * 64;
      const float4 v0 = At4(value);
      const float4 v1 = At4(value + G::kStride);
      const float4 v2 = At4(value + 2 * G::kStride);
      const float4 v3 = At4(value + 3 * G::kStride);
#pragma unroll
      for (uint32_t a = 0; a < 4; ++a) {
        AddScaled(weight[a].x, v0, state.out[a][e]);
        AddScaled(weight[a].y, v1, state.out[a][e]);
        AddScaled(weight[a].z, v2, state.out[a][e]);
        AddScaled(weight[a].w, v3, state.out[a][e]);
      }
    }
  }
}

template <typename G>
__device__ void StoreRows(const Task& task, const Work& work, uint32_t row, uint32_t channel,
                          const ThreadState<G>& state) {
#pragma unroll
  for (uint32_t a = 0; a < 4; ++a) {
    float total = state.total[a];
#pragma unroll
    for (uint32_t step = 8; step > 0; step /= 2) {
      total = __fadd_rn(total, __shfl_xor_sync(0xFFFFFFFF, total, step));
    }
    if (row + a >= work.rows) continue;  // the same for the 16 threads of a row
    float* out = task.out + ValueOf(task, work, row + a) + channel;
#pragma unroll
    for (uint32_t e = 0; e < G::kDim / 64; ++e) {
      if (channel + e * 64 >= task.head_dim) break;
      const float4 sum = state.out[a][e];
      *reinterpret_cast<float4*>(out + e * 64) = {__fdiv_rn(sum.x, total), __fdiv_rn(sum.y, total),
                                                  __fdiv_rn(sum.z, total), __fdiv_rn(sum.w, total)};
    }
  }
}

// A CTA takes G::kRows query rows of a KV head over KV tiles of G::kTile entries. FLOPs: 4 *
// head_dim per query row and entry; a thread does 4 x 4 of them per vector that it loads from
// shared memory.
template <typename G>
__global__ void __launch_bounds__(G::kThreads) FmaKernel(Task task) {
  BeginKernel();
  extern __shared__ __align__(16) float floats[];
  float* const queries = floats;
  float* const tile = queries + G::kRows * G::kDim;
  float* const weights = tile + G::kTile * G::kStride;
  __shared__ Work work;
  FindWork(task, G::kRows, work);
  for (uint32_t row = threadIdx.x / 32; row < G::kRows; row += G::kThreads / 32) {
    const bool there = work.first_row + row < work.rows;
    const float* q = task.q + (there ? ValueOf(task, work, work.first_row + row) : 0);
    for (uint32_t c = threadIdx.x % 32; c < task.head_dim; c += 32) {
      queries[row * G::kDim + c] = there ? q[c] : 0.0f;
    }
  }
  const uint32_t first = threadIdx.x / 16 * 4;  // the thread's rows
  const uint32_t column = threadIdx.x % 16;
  ThreadState<G> state = {};
#pragma unroll
  for (float& highest : state.highest) highest = -CUDART_INF_F;
  for (uint32_t entry = 0; entry < work.length; entry += G::kTile) {
    __syncthreads();  // none reads the values before
    CopyTile<G>(task, work, entry, 0, tile);
    ThreadScores<G> scores;
    ScoreRows<G>(queries + first * G::kDim, tile + column * G::kStride, task.head_dim, scores);
    WeighRows<G>(task, work, work.first_row + first, entry + column, scores,
                 weights + first * G::kWeightStride + column, state);
    __syncthreads();  // none reads the keys, and the weights are there
    CopyTile<G>(task, work, entry, task.head_dim, tile);
    AddRows<G>(weights + first * G::kWeightStride, tile + column * 4, state);
  }
  StoreRows<G>(task, work, work.first_row + first, column * 4, state);
}

}  // namespace sparsekv::cuda::prompt
