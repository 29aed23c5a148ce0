#pragma once

#include <math_constants.h>

#include "kernels/cuda/attention_prompt.cuh"
#include "kernels/cuda/begin_kernel.cuh"

// Dense attention over rows of 16 bits on the tensor cores (mma m16n8k16).
namespace sparsekv::cuda::prompt {

inline constexpr uint32_t kMmaThreads = 128;
inline constexpr uint32_t kMmaWarps = kMmaThreads / 32;

// Values per row rounded up to kDim, query rows of a warp, bytes of shared memory. Rows in shared
// memory are kDim values; the chunk of 16 bytes c of row r lies at chunk c ^ (r % 8), so that eight
// rows' chunks of one column lie in different banks.
template <uint32_t kDimOf, uint32_t kWarpRowsOf>
struct MmaGeometry {
  static constexpr uint32_t kDim = kDimOf;
  static constexpr uint32_t kWarpRows = kWarpRowsOf;
  static constexpr uint32_t kRows = kMmaWarps * kWarpRows;
  static constexpr uint32_t kRowTiles = kWarpRows / 16;  // of 16 query rows, in a warp
  static constexpr uint32_t kRowBytes = 2 * kDim;
  static constexpr uint32_t kChunks = kDim / 8;
  static constexpr uint32_t kTileBytes = kBlockTokens * kRowBytes;  // K or V of a KV tile
  static constexpr uint32_t kStages = kDim > 128 ? 1 : 2;  // 99 KB are what every device has
  static constexpr uint32_t kBytes = kRows * kRowBytes + 2 * kStages * kTileBytes;
};

template <typename T>
__device__ uint32_t Pack(float low, float high) {
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
}

// Four 8 x 8 matrices; lane l gives the address of row l % 8 of matrix l / 8.
__device__ inline void LoadMatrices(uint32_t (&to)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(at));
}
__device__ inline void LoadTransposed(uint32_t (&to)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(at));
}

// c [16, 8] += a [16, 16] b [16, 8].
template <typename T>
__device__ void Multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// The tile's query rows, rounded to the rows' type once; zeros beyond the item and the head_dim.
template <typename T, typename G>
__device__ void LoadQueries(const Task& task, const Work& work, std::byte* to) {
  for (uint32_t n = threadIdx.x; n < G::kRows * G::kChunks; n += kMmaThreads) {
    const uint32_t row = n / G::kChunks;
    const uint32_t chunk = n % G::kChunks;
    uint4 values = {0, 0, 0, 0};
    if (work.first_row + row < work.rows && chunk * 8 < task.head_dim) {
      const float* q = task.q + ValueOf(task, work, work.first_row + row) + chunk * 8;
      const float4 a = reinterpret_cast<const float4*>(q)[0];
      const float4 b = reinterpret_cast<const float4*>(q)[1];
      values = {Pack<T>(a.x, a.y), Pack<T>(a.z, a.w), Pack<T>(b.x, b.y), Pack<T>(b.z, b.w)};
    }
    *reinterpret_cast<uint4*>(to + row * G::kRowBytes + (chunk ^ (row % 8)) * 16) = values;
  }
}

// Starts copies of a block's first `rows` rows of K and V at one head; zeros for the others, whose
// V may be NaN, and beyond the head_dim.
template <typename G, bool kWhole>
__device__ void StartTile(const std::byte* head, uint32_t head_dim, uint32_t rows, uint32_t keys,
                          uint32_t values) {
  constexpr uint32_t kPass = kMmaThreads / G::kChunks;  // rows copied at a time
  const uint32_t half_row = kWhole ? 2 * G::kDim : 2 * head_dim;
  const uint32_t first = threadIdx.x / G::kChunks;
  const uint32_t chunk = threadIdx.x % G::kChunks;
  const bool inside = kWhole || chunk * 8 < head_dim;
  const std::byte* from = head + first * 2 * half_row + (inside ? chunk * 16 : 0);
  asm volatile("" : "+l"(from));  // one address and constants from it, not an address for each copy
  const uint32_t to = first * G::kRowBytes;
#pragma unroll
  for (uint32_t i = 0; i < kBlockTokens / kPass; ++i) {
    const uint32_t at =
        to + i * kPass * G::kRowBytes + (chunk ^ (first % 8) ^ (i * kPass % 8)) * 16;
    const bool there = inside && first + i * kPass < rows;
    CopyAsync(keys + at, from + i * kPass * 2 * half_row, there);
    CopyAsync(values + at, from + i * kPass * 2 * half_row + half_row, there);
  }
}

// What a warp holds of its query rows: lane l has columns 2 * (l % 4) and the next one of every 8,
// of rows l / 4 and l / 4 + 8 of every 16; c = 2 * (which of the rows) + (which of the columns).
template <typename G>
struct WarpState {
  float out[G::kRowTiles][G::kDim / 8][4];
  float highest[G::kRowTiles][2];  // score of the row so far, not scaled
  float total[G::kRowTiles][2];    // of the weights of this lane's columns
};
template <typename G>
using WarpScores = float[G::kRowTiles][kBlockTokens / 8][4];

// scores = q . k of the warp's rows and a KV tile. `queries` and `keys` are the lane's addresses.
template <typename T, typename G>
__device__ void Score(uint32_t queries, uint32_t keys, WarpScores<G>& scores) {
#pragma unroll
  for (uint32_t m = 0; m < G::kRowTiles; ++m) {
#pragma unroll
    for (uint32_t n = 0; n < kBlockTokens / 8; ++n) {
#pragma unroll
      for (uint32_t c = 0; c < 4; ++c) scores[m][n][c] = 0.0f;
    }
  }
#pragma unroll(G::kDim > 128 ? 4 : G::kDim / 16)  // all of a long row's addresses would spill
  for (uint32_t k = 0; k < G::kDim / 16; ++k) {
    uint32_t a[G::kRowTiles][4];
#pragma unroll
    for (uint32_t m = 0; m < G::kRowTiles; ++m) {
      LoadMatrices(a[m], (queries ^ (k * 32)) + m * 16 * G::kRowBytes);
    }
#pragma unroll
    for (uint32_t n = 0; n < kBlockTokens / 16; ++n) {
      uint32_t b[4];
      LoadMatrices(b, (keys ^ (k * 32)) + n * 16 * G::kRowBytes);
#pragma unroll
      for (uint32_t m = 0; m < G::kRowTiles; ++m) {
        Multiply<T>(scores[m][2 * n], a[m], b[0], b[1]);
        Multiply<T>(scores[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// Takes out what lies beyond a row's list. `warp_row`: the lane's first row; `column`: its first.
template <typename G>
__device__ void Mask(const Task& task, const Work& work, uint32_t warp_row, uint32_t column,
                     WarpScores<G>& scores) {
#pragma unroll
  for (uint32_t m = 0; m < G::kRowTiles; ++m) {
#pragma unroll
    for (uint32_t c = 0; c < 4; ++c) {
      const uint32_t last = LastEntry(task, work, warp_row + m * 16 + c / 2 * 8);
#pragma unroll
      for (uint32_t n = 0; n < kBlockTokens / 8; ++n) {
        if (column + n * 8 + c % 2 > last) scores[m][n][c] = -CUDART_INF_F;
      }
    }
  }
}

// Scores become weights exp2(scale * (score - highest)), and the state is scaled to the new
// highest scores. The first tile has an entry of every row's list: from there on none is -inf.
template <typename G>
__device__ void Weigh(float scale, WarpScores<G>& scores, WarpState<G>& state) {
  float factors[G::kRowTiles][2];
  bool higher = false;
#pragma unroll
  for (uint32_t m = 0; m < G::kRowTiles; ++m) {
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      const float before = state.highest[m][r];
      float highest = before;
#pragma unroll
      for (uint32_t n = 0; n < kBlockTokens / 8; ++n) {
        highest = fmaxf(highest, fmaxf(scores[m][n][2 * r], scores[m][n][2 * r + 1]));
      }
      highest = fmaxf(highest, __shfl_xor_sync(0xFFFFFFFF, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(0xFFFFFFFF, highest, 2));
      state.highest[m][r] = highest;
      factors[m][r] = Exp2(__fmul_rn(__fsub_rn(before, highest), scale));
      higher |= factors[m][r] != 1.0f;
      const float shift = __fmul_rn(highest, scale);
      float total = __fmul_rn(state.total[m][r], factors[m][r]);
#pragma unroll
      for (uint32_t n = 0; n < kBlockTokens / 8; ++n) {
        float(&pair)[4] = scores[m][n];
        pair[2 * r] = Exp2(__fmaf_rn(pair[2 * r], scale, -shift));
        pair[2 * r + 1] = Exp2(__fmaf_rn(pair[2 * r + 1], scale, -shift));
        total = __fadd_rn(total, __fadd_rn(pair[2 * r], pair[2 * r + 1]));
      }
      state.total[m][r] = total;
    }
  }
  // Mostly nothing is higher after the first tiles, and a factor of 1 changes no bit.
  if (!__any_sync(0xFFFFFFFF, higher)) return;
#pragma unroll
  for (uint32_t m = 0; m < G::kRowTiles; ++m) {
#pragma unroll
    for (uint32_t n = 0; n < G::kDim / 8; ++n) {
#pragma unroll
      for (uint32_t c = 0; c < 4; ++c) {
        state.out[m][n][c] = __fmul_rn(state.out[m][n][c], factors[m][c / 2]);
      }
    }
  }
}

// out += weights . v; the weights are rounded to the rows' type. `values`: the lane's address.
template <typename T, typename G>
__device__ void AddValues(const WarpScores<G>& weights, uint32_t values, WarpState<G>& state) {
#pragma unroll
  for (uint32_t k = 0; k < kBlockTokens / 16; ++k) {
    uint32_t a[G::kRowTiles][4];
#pragma unroll
    for (uint32_t m = 0; m < G::kRowTiles; ++m) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        const float(&from)[4] = weights[m][2 * k + i / 2];
        a[m][i] = Pack<T>(from[i % 2 * 2], from[i % 2 * 2 + 1]);
      }
    }
#pragma unroll
    for (uint32_t n = 0; n < G::kDim / 16; ++n) {
      uint32_t b[4];
      LoadTransposed(b, (values ^ (n * 32)) + k * 16 * G::kRowBytes);
#pragma unroll
      for (uint32_t m = 0; m < G::kRowTiles; ++m) {
        Multiply<T>(state.out[m][2 * n], a[m], b[0], b[1]);
        Multiply<T>(state.out[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// Four lanes write 32 bytes of a row: whole sectors.
template <typename G, bool kWhole>
__device__ void StoreRows(const Task& task, const Work& work, uint32_t warp_row,
                          const WarpState<G>& state) {
#pragma unroll
  for (uint32_t m = 0; m < G::kRowTiles; ++m) {
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      float total = state.total[m][r];
      total = __fadd_rn(total, __shfl_xor_sync(0xFFFFFFFF, total, 1));
      total = __fadd_rn(total, __shfl_xor_sync(0xFFFFFFFF, total, 2));
      const float by = __frcp_rn(total);
      const uint32_t row = warp_row + m * 16 + r * 8;
      if (row >= work.rows) continue;  // the same for the four lanes of a row
      float* out = task.out + ValueOf(task, work, row) + threadIdx.x % 4 * 2;
#pragma unroll
      for (uint32_t n = 0; n < G::kDim / 8; ++n) {
        if (!kWhole && n * 8 >= task.head_dim) break;
        *reinterpret_cast<float2*>(out + n * 8) = {__fmul_rn(state.out[m][n][2 * r], by),
                                                   __fmul_rn(state.out[m][n][2 * r + 1], by)};
      }
    }
  }
}

// A CTA takes G::kRows query rows of a KV head over KV tiles of one block each, a warp G::kWarpRows
// of them; the next block is on its way while one is worked on. FLOPs: 4 * head_dim per query row
// and entry; bytes: 4 * head_dim per entry and CTA, from the L2 cache. kWhole: head_dim is kDim.
template <typename T, typename G, bool kWhole>
__global__ void __launch_bounds__(kMmaThreads, G::kDim > 128 ? 1 : 2) MmaKernel(Task task) {
  BeginKernel();
  extern __shared__ __align__(1024) std::byte shared[];
  __shared__ Work work;
  FindWork(task, G::kRows, work);
  const RowsView rows = work.item.rows;
  const std::byte* base = rows.base + uint64_t{work.kv_head} * rows.head_stride;
  const uint32_t count = (work.length + kBlockTokens - 1) / kBlockTokens;
  const uint32_t whole = work.common / kBlockTokens;  // tiles without a mask
  const uint32_t queries_at = SharedAddress(shared);
  const uint32_t tiles_at = queries_at + G::kRows * G::kRowBytes;
  uint32_t block = rows.blocks[0];  // of the next tile to be copied: asked for a tile ahead
  const auto start = [&](uint32_t i) {
    const uint32_t keys = tiles_at + i % G::kStages * 2 * G::kTileBytes;
    StartTile<G, kWhole>(base + block * rows.block_stride, task.head_dim,
                         work.length - i * kBlockTokens, keys, keys + G::kTileBytes);
    block = rows.blocks[min(i + 1, count - 1)];
  };
  start(0);
  LoadQueries<T, G>(task, work, shared);

  // Addresses of a lane in a tile of rows: of 16 rows and 2 chunks, by rows or by chunks first.
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t warp = threadIdx.x / 32;
  const uint32_t rows_first = lane % 16 * G::kRowBytes + (lane / 16 ^ lane % 8) * 16;
  const uint32_t chunks_first =
      (lane / 16 * 8 + lane % 8) * G::kRowBytes + (lane / 8 % 2 ^ lane % 8) * 16;
  const uint32_t queries = queries_at + warp * G::kWarpRows * G::kRowBytes + rows_first;
  const uint32_t warp_row = work.first_row + warp * G::kWarpRows + lane / 4;
  WarpState<G> state = {};
#pragma unroll
  for (uint32_t m = 0; m < G::kRowTiles; ++m) {
    state.highest[m][0] = state.highest[m][1] = -CUDART_INF_F;
  }
  for (uint32_t i = 0; i < count; ++i) {
    WaitForCopies();
    __syncthreads();  // the tile is there, and none reads the one before it
    if (G::kStages == 2 && i + 1 < count) start(i + 1);
    const uint32_t keys = tiles_at + i % G::kStages * 2 * G::kTileBytes;
    WarpScores<G> scores;
    Score<T, G>(queries, keys + chunks_first, scores);
    if (i >= whole) {
      Mask<G>(task, work, warp_row, i * kBlockTokens + lane % 4 * 2, scores);
    }
    Weigh<G>(task.scale, scores, state);
    AddValues<T, G>(scores, keys + G::kTileBytes + rows_first, state);
    if (G::kStages == 1 && i + 1 < count) {
      __syncthreads();
      start(i + 1);
    }
  }
  StoreRows<G, kWhole>(task, work, warp_row, state);
}

}  // namespace sparsekv::cuda::prompt
