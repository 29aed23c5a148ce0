#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstring>
#include <type_traits>

#include "kernels/cuda/attention_few.cuh"
#include "kernels/cuda/attention_few_feed.cuh"
#include "kernels/cuda/begin_kernel.cuh"

// The fast way, for rows of 16-bit values: tensor cores multiply, copies past the registers keep
// memory busy. See AttendFewMma.
namespace sparsekv::cuda {
namespace {

// ---- Instructions

struct Fragment {
  uint32_t at[4];
};

__device__ inline Fragment LoadMatrices(uint32_t address) {
  Fragment f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.at[0]), "=r"(f.at[1]), "=r"(f.at[2]), "=r"(f.at[3])
               : "r"(address)
               : "memory");
  return f;
}

__device__ inline Fragment LoadMatricesTransposed(uint32_t address) {
  Fragment f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.at[0]), "=r"(f.at[1]), "=r"(f.at[2]), "=r"(f.at[3])
               : "r"(address)
               : "memory");
  return f;
}

__device__ inline uint32_t Transposed(uint32_t matrix) {
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(matrix));
  return result;
}

// c [16, 8] += a [16, 16] * b [16, 8].
template <typename T>
__device__ void MultiplyAdd(float (&c)[4], const Fragment& a, uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.at[0]), "r"(a.at[1]), "r"(a.at[2]), "r"(a.at[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.at[0]), "r"(a.at[1]), "r"(a.at[2]), "r"(a.at[3]), "r"(b0), "r"(b1));
  }
}

// Two values, each as the sum of two of the type: 16 (bf16) or 22 (f16) bits of them are kept.
struct Halves {
  uint32_t high;
  uint32_t low;
};

template <typename T>
__device__ Halves Split(float a, float b) {
  Halves halves;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    const __nv_bfloat162 high = __floats2bfloat162_rn(a, b);
    const __nv_bfloat162 low = __floats2bfloat162_rn(a - __low2float(high), b - __high2float(high));
    memcpy(&halves.high, &high, sizeof(high));
    memcpy(&halves.low, &low, sizeof(low));
  } else {
    const __half2 high = __floats2half2_rn(a, b);
    const __half2 low = __floats2half2_rn(a - __low2float(high), b - __high2float(high));
    memcpy(&halves.high, &high, sizeof(high));
    memcpy(&halves.low, &low, sizeof(low));
  }
  return halves;
}

// f16 reaches no further than 65504 and 2^-24. Weights are multiplied by 2^14, as the total is, and
// a head's query by a power of two that brings its largest value to 2^12.
template <typename T>
constexpr float kWeightExponent = std::is_same_v<T, __half> ? 14.0f : 0.0f;
constexpr int kQueryExponent = 12;

// ---- Arithmetic of one warp

// Query heads are the columns of both products: scores = K tile [16 rows, head_dim] * q, and
// output^T += V tile^T [head_dim, 16 rows] * weights. So up to eight heads cost the same, the
// weights stay in registers, and a lane has the same two heads in scores and output.
template <typename T, uint32_t kHeadDim>
class HeadsOfWarp {
 public:
  static constexpr uint32_t kSteps = kHeadDim / 16;

  // `q`: [heads, kHeadDim].
  __device__ void LoadQuery(const float* q, uint32_t heads, float scale) {
    const uint32_t lane = threadIdx.x % kWarp, head = lane / 4;
    float2 values[2 * kSteps];
    float largest = 0;
#pragma unroll
    for (uint32_t i = 0; i < 2 * kSteps; ++i) {
      values[i] = {0, 0};
      if (head < heads) {
        values[i] = *reinterpret_cast<const float2*>(q + head * kHeadDim + i * 8 + lane % 4 * 2);
      }
      largest = fmaxf(largest, fmaxf(fabsf(values[i].x), fabsf(values[i].y)));
    }
    float up = 1;
    if constexpr (std::is_same_v<T, __half>) {
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
      const int exponent = min(max(ilogbf(largest), -100), 100);
      up = scalbnf(1.0f, kQueryExponent - exponent);
      scale *= scalbnf(1.0f, exponent - kQueryExponent);
    }
#pragma unroll
    for (uint32_t i = 0; i < kSteps; ++i) {
      query_[i][0] = Split<T>(values[2 * i].x * up, values[2 * i].y * up);
      query_[i][1] = Split<T>(values[2 * i + 1].x * up, values[2 * i + 1].y * up);
    }
    scale_[0] = __shfl_sync(kAllLanes, scale, lane % 4 * 8);
    scale_[1] = __shfl_sync(kAllLanes, scale, lane % 4 * 8 + 4);
  }

  __device__ void Reset() {
#pragma unroll
    for (auto& sums : sums_) sums[0] = sums[1] = sums[2] = sums[3] = 0;
    highest_[0] = highest_[1] = -INFINITY;
    total_[0] = total_[1] = 0;
  }

  // Of the first `rows` rows of the tile; the others are not looked at. What of the tile's rows is
  // not there must be zero.
  __device__ void Score(uint32_t tile, uint32_t rows) {
    const uint32_t lane = threadIdx.x % kWarp;
    float high[4] = {}, low[4] = {};
#pragma unroll
    for (uint32_t i = 0; i < kSteps; ++i) {
      const Fragment keys = LoadMatrices(tile + ChunkAt<kHeadDim>(lane % 16, 2 * i + lane / 16));
      MultiplyAdd<T>(high, keys, query_[i][0].high, query_[i][1].high);
      MultiplyAdd<T>(low, keys, query_[i][0].low, query_[i][1].low);
    }
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {  // rows lane / 4 and 8 further, of each two heads
      const bool there = lane / 4 + i / 2 * 8 < rows;
      weights_[i] = there ? (high[i] + low[i]) * scale_[i % 2] : -INFINITY;
    }
  }

  // From the scores to weights relative to the highest so far; what was summed before is rescaled.
  __device__ void Weigh() {
    float correction[2];
#pragma unroll
    for (uint32_t j = 0; j < 2; ++j) {
      float highest = fmaxf(weights_[j], weights_[j + 2]);
#pragma unroll
      for (uint32_t d = 4; d < kWarp; d *= 2) {
        highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, d));
      }
      highest = fmaxf(highest, highest_[j]);
      correction[j] = exp2f(highest_[j] - highest);
      highest_[j] = highest;
      weights_[j] = exp2f(weights_[j] - highest + kWeightExponent<T>);
      weights_[j + 2] = exp2f(weights_[j + 2] - highest + kWeightExponent<T>);
      total_[j] = fmaf(total_[j], correction[j], weights_[j] + weights_[j + 2]);
    }
    if (__any_sync(kAllLanes, correction[0] != 1 || correction[1] != 1)) {
#pragma unroll
      for (auto& sums : sums_) {
        sums[0] *= correction[0];
        sums[1] *= correction[1];
        sums[2] *= correction[0];
        sums[3] *= correction[1];
      }
    }
  }

  __device__ void AddValues(uint32_t tile) {
    const uint32_t lane = threadIdx.x % kWarp;
    const uint32_t row = lane % 8 + lane / 16 * 8, chunk = kHeadDim / 8 + lane / 8 % 2;
    const Halves first = Split<T>(weights_[0], weights_[1]);
    const Halves second = Split<T>(weights_[2], weights_[3]);
    const uint32_t high0 = Transposed(first.high), high1 = Transposed(second.high);
    const uint32_t low0 = Transposed(first.low), low1 = Transposed(second.low);
#pragma unroll
    for (uint32_t i = 0; i < kSteps; ++i) {
      const Fragment values = LoadMatricesTransposed(tile + ChunkAt<kHeadDim>(row, chunk + 2 * i));
      MultiplyAdd<T>(sums_[i], values, high0, high1);
      MultiplyAdd<T>(sums_[i], values, low0, low1);
    }
  }

  // `results`: of this warp, [heads, kHeadDim + kTail].
  __device__ void Store(float* results, uint32_t heads) {
    const uint32_t lane = threadIdx.x % kWarp;
#pragma unroll
    for (uint32_t j = 0; j < 2; ++j) {
      float total = total_[j];
#pragma unroll
      for (uint32_t d = 4; d < kWarp; d *= 2) total += __shfl_xor_sync(kAllLanes, total, d);
      const uint32_t head = lane % 4 * 2 + j;
      if (head >= heads) continue;
      float* result = results + head * (kHeadDim + kTail);
#pragma unroll
      for (uint32_t i = 0; i < kSteps; ++i) {
        result[i * 16 + lane / 4] = sums_[i][j];
        result[i * 16 + lane / 4 + 8] = sums_[i][j + 2];
      }
      if (lane < 4) {
        result[kHeadDim] = highest_[j];
        result[kHeadDim + 1] = total;
      }
    }
  }

 private:
  Halves query_[kSteps][2];
  float sums_[kSteps][4];
  float weights_[4];
  float scale_[2], highest_[2], total_[2];
};

// Bytes: 4 * kHeadDim per entry of every list and KV head, once for each 8 query heads of a group.
// Beside that 4 * kHeadDim per query head and split, written and read: 3 % for a group of 4 in
// splits of 128. FLOPs: 64 * kHeadDim per entry on tensor cores, below a tenth of what an H100 can
// do while its memory brings the rows.
//
// A unit's tiles of 16 rows go to the warps in turn. Each warp brings its own rows and waits for
// nobody until the unit ends, and its next unit's rows are under way by then.
template <typename T, uint32_t kHeadDim, bool kOffloaded>
__global__ void __launch_bounds__(FewShape<kHeadDim>::kWarps* kWarp, 3) AttendFewMma(FewCall call) {
  using Shape = FewShape<kHeadDim>;
  extern __shared__ __align__(128) std::byte shared[];
  float* results = reinterpret_cast<float*>(shared + Shape::kWarps * Shape::kRingBytes);
  const Share share = ShareOfCta(call);
  Place place{};
  const bool early = call.rows_done.any();
  if (share.count > 0) place = PlaceOf(call, share.first);
  if (!early) BeginKernel();
  if (share.count == 0) return;  // others have units, and wait at the end
  if constexpr (kOffloaded) StopAhead(call);
  const uint32_t warp = threadIdx.x / kWarp;
  const uint32_t ring =
      static_cast<uint32_t>(__cvta_generic_to_shared(shared)) + warp * Shape::kRingBytes;
  RowFeed<kHeadDim, kOffloaded> feed(call, place, share.count, ring);
  HeadsOfWarp<T, kHeadDim> heads;
  const float* loaded = nullptr;
  uint32_t stage = 0, done = 0;  // units of the list
  for (uint32_t unit = share.first; unit < share.first + share.count; ++unit) {
    if (done == 0 && unit > share.first) place.Find(call);
    const FewItem& item = call.items[place.item];
    const uint32_t entries = SplitEntries(item, place.split), used = place.Heads(call);
    const float* q = call.q + place.Offset(call, item.token);
    if (q != loaded) heads.LoadQuery(q, used, call.scale);
    loaded = q;
    heads.Reset();
    for (uint32_t tile = warp; tile * kTileRows < entries; tile += Shape::kWarps) {
      __pipeline_wait_prior(Shape::kStages - 1);
      __syncwarp();  // what the other lanes asked for is there too
      const uint32_t at = ring + stage * Shape::kTileBytes;
      if constexpr (kOffloaded) feed.Land(stage, place, tile);
      heads.Score(at, entries - tile * kTileRows);
      feed.Locate();
      heads.Weigh();
      heads.AddValues(at);
      __syncwarp();  // nobody reads the tile any more
      feed.Fetch(stage);
      stage = (stage + 1) % Shape::kStages;
    }
    heads.Store(results + warp * call.pass_heads * (kHeadDim + kTail), used);
    FinishUnit<Shape::kWarps>(call, share, unit, place, done, results);
  }
  if constexpr (kOffloaded) feed.NoteTimes();
  if (early) EndKernel();
}

}  // namespace
}  // namespace sparsekv::cuda
