#pragma once

#include "kernels/cuda/attention_few.cuh"
#include "kernels/cuda/begin_kernel.cuh"
#include "kernels/cuda/copy_times.cuh"

// The general way: rows of any type, heads of any size. See AttendFewPlain.
namespace sparsekv::cuda {
namespace {

constexpr uint32_t kPlainWarps = 4;
constexpr uint32_t kUnitValues = 8;  // that a lane reads at once; head_dim is a multiple of it

template <typename T>
struct alignas(16) UnitOf {
  T at[kUnitValues];
};

template <typename T>
__device__ void LoadUnit(const std::byte* from, float (&values)[kUnitValues]) {
  const UnitOf<T> unit = *reinterpret_cast<const UnitOf<T>*>(from);
#pragma unroll
  for (uint32_t i = 0; i < kUnitValues; ++i) values[i] = ToFloat<T>(unit.at[i]);
}

// One warp's heads. Lanes are rows while scores are made, and channels while values are summed.
template <typename T>
class PlainHeads {
 public:
  // `query`: shared, [heads, head_dim]. `weights`: shared, of this warp, [kPassHeads, kWarp].
  __device__ PlainHeads(const float* query, float* weights, uint32_t head_dim, float scale)
      : query_(query), weights_(weights), head_dim_(head_dim), scale_(scale) {}

  __device__ void Reset(uint32_t heads) {
    heads_ = heads;
#pragma unroll
    for (uint32_t h = 0; h < kPassHeads; ++h) {
      highest_[h] = -INFINITY;
      total_[h] = 0;
#pragma unroll
      for (float& sum : sums_[h]) sum = 0;
    }
  }

  // One row per lane, null where there is none; the first lane has one.
  __device__ void AddRows(const std::byte* row, uint32_t rows) {
    float scores[kPassHeads];
    Score(row, scores);
    Weigh(row != nullptr, scores);
    __syncwarp();
    const uint32_t channel = threadIdx.x % kWarp * kUnitValues;
#pragma unroll 4
    for (uint32_t r = 0; r < rows; ++r) {
      const auto at = __shfl_sync(kAllLanes, reinterpret_cast<unsigned long long>(row), r);
      if (channel >= head_dim_) continue;
      float values[kUnitValues];
      LoadUnit<T>(reinterpret_cast<const std::byte*>(at) + (head_dim_ + channel) * sizeof(T),
                  values);
#pragma unroll
      for (uint32_t h = 0; h < kPassHeads; ++h) {
        if (h >= heads_) break;
        const float weight = weights_[h * kWarp + r];
#pragma unroll
        for (uint32_t i = 0; i < kUnitValues; ++i) {
          sums_[h][i] = fmaf(weight, values[i], sums_[h][i]);
        }
      }
    }
    __syncwarp();  // nobody reads the weights any more
  }

  // `results`: of this warp, [heads, head_dim + kTail].
  __device__ void Store(float* results) {
    const uint32_t lane = threadIdx.x % kWarp, channel = lane * kUnitValues;
#pragma unroll
    for (uint32_t h = 0; h < kPassHeads; ++h) {
      if (h >= heads_) break;
      float* result = results + h * (head_dim_ + kTail);
      float total = total_[h];
#pragma unroll
      for (uint32_t d = kWarp / 2; d > 0; d /= 2) total += __shfl_xor_sync(kAllLanes, total, d);
      if (lane == 0) {
        result[head_dim_] = highest_[h];
        result[head_dim_ + 1] = total;
      }
      if (channel >= head_dim_) continue;
#pragma unroll
      for (uint32_t i = 0; i < kUnitValues; ++i) result[channel + i] = sums_[h][i];
    }
  }

 private:
  __device__ void Score(const std::byte* row, float (&scores)[kPassHeads]) const {
#pragma unroll
    for (float& score : scores) score = 0;
    if (!row) return;
    for (uint32_t c = 0; c < head_dim_; c += kUnitValues) {
      float keys[kUnitValues];
      LoadUnit<T>(row + c * sizeof(T), keys);
#pragma unroll
      for (uint32_t h = 0; h < kPassHeads; ++h) {
        if (h >= heads_) break;
        const auto query = *reinterpret_cast<const UnitOf<float>*>(query_ + h * head_dim_ + c);
#pragma unroll
        for (uint32_t i = 0; i < kUnitValues; ++i) {
          scores[h] = fmaf(query.at[i], keys[i], scores[h]);
        }
      }
    }
  }

  __device__ void Weigh(bool there, const float (&scores)[kPassHeads]) {
#pragma unroll
    for (uint32_t h = 0; h < kPassHeads; ++h) {
      if (h >= heads_) break;
      const float score = there ? scores[h] * scale_ : -INFINITY;
      float highest = score;
#pragma unroll
      for (uint32_t d = kWarp / 2; d > 0; d /= 2) {
        highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, d));
      }
      highest = fmaxf(highest, highest_[h]);
      const float correction = exp2f(highest_[h] - highest);
      highest_[h] = highest;
      const float weight = exp2f(score - highest);
      total_[h] = fmaf(total_[h], correction, weight);
      weights_[h * kWarp + threadIdx.x % kWarp] = weight;
#pragma unroll
      for (float& sum : sums_[h]) sum *= correction;
    }
  }

  const float* query_;
  float* weights_;
  uint32_t head_dim_;
  float scale_;
  uint32_t heads_ = 0;
  float sums_[kPassHeads][kUnitValues];
  float highest_[kPassHeads];
  float total_[kPassHeads];  // of this lane's rows
};

constexpr size_t PlainSharedBytes(uint32_t pass_heads, uint32_t head_dim) {
  return pass_heads * head_dim * sizeof(float) + ResultBytes(kPlainWarps, pass_heads, head_dim);
}

// Where the rows of a warp's run of 32 entries are found, one per lane. kOffloaded: of some items.
template <bool kOffloaded>
class PlainRows {
 public:
  // `token`: of the lane's entry, where `there`; `first`: the run's first entry in the list. Rows
  // that come from the segment are read where they land, if they do.
  __device__ const std::byte* Find(const FewItem& item, uint32_t head, uint32_t token, bool there,
                                   uint32_t first) {
    const OffloadedView* offloaded = kOffloaded ? item.offloaded : nullptr;
    absent_ = 0;
    if (offloaded == nullptr) return there ? item.rows.Row(head, token) : nullptr;
    const uint32_t slot = there ? offloaded->SlotOf(head, token) : 0;
    const std::byte* row = nullptr;
    if (there) {
      row = slot == kNotHot ? item.rows.Row(head, token) : offloaded->hot.rows.Row(head, slot);
    }
    absent_ = __ballot_sync(kAllLanes, there && slot == kNotHot);
    if (absent_ == 0) return row;
    times_.Begin();
    if (offloaded->landing.blocks == nullptr) return row;
    for (uint32_t left = absent_; left != 0;) {
      left = Land(row, offloaded->landing, head, first, left, item.rows.row_bytes);
    }
    __syncwarp();
    const uint32_t lane = threadIdx.x % kWarp;
    return absent_ >> lane & 1 ? offloaded->landing.Row(head, first + lane) : row;
  }

  // What was found has been read.
  __device__ void End() {
    if (kOffloaded && absent_ != 0) times_.End();
  }
  __device__ void NoteTimes(const FewCall& call) const {
    if (kOffloaded && threadIdx.x % kWarp == 0) times_.Note(call.times);
  }

 private:
  static constexpr uint32_t kAtOnce = 4;  // rows, whose loads do not wait for each other

  // Copies the first few of the lanes' rows that are `left`; returns the others.
  __device__ static uint32_t Land(const std::byte* row, const RowsView& landing, uint32_t head,
                                  uint32_t first, uint32_t left, uint32_t row_bytes) {
    const uint4* from[kAtOnce];
    uint4* to[kAtOnce];
#pragma unroll
    for (uint32_t k = 0; k < kAtOnce; ++k, left &= left - 1) {
      const uint32_t r = left != 0 ? static_cast<uint32_t>(__ffs(static_cast<int>(left)) - 1) : 0;
      const auto at = __shfl_sync(kAllLanes, reinterpret_cast<unsigned long long>(row), r);
      from[k] = left != 0 ? reinterpret_cast<const uint4*>(at) : nullptr;
      to[k] = reinterpret_cast<uint4*>(landing.Row(head, first + r));
    }
    for (uint32_t i = threadIdx.x % kWarp; i < row_bytes / sizeof(uint4); i += kWarp) {
      uint4 values[kAtOnce];
#pragma unroll
      for (uint32_t k = 0; k < kAtOnce; ++k) {
        if (from[k] != nullptr) values[k] = from[k][i];
      }
#pragma unroll
      for (uint32_t k = 0; k < kAtOnce; ++k) {
        if (from[k] != nullptr) to[k][i] = values[k];
      }
    }
    return left;
  }

  uint32_t absent_ = 0;  // of the run: a bit per lane
  ReadTimes times_;
};

// Bytes: a row of every list and KV head, once for each 8 query heads of a group. FLOPs: 4 *
// head_dim per entry and query head, as float32 multiply-adds.
//
// A unit's entries go to the warps in runs of 32.
template <typename T, bool kOffloaded>
__global__ void __launch_bounds__(kPlainWarps* kWarp) AttendFewPlain(FewCall call) {
  BeginKernel();
  extern __shared__ __align__(128) float plain_shared[];
  __shared__ float weights[kPlainWarps][kPassHeads * kWarp];
  float* query = plain_shared;
  float* results = plain_shared + call.pass_heads * call.head_dim;
  const Share share = ShareOfCta(call);
  if (share.count == 0) return;
  if constexpr (kOffloaded) StopAhead(call);
  Place place = PlaceOf(call, share.first);
  const uint32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  PlainHeads<T> heads(query, weights[warp], call.head_dim, call.scale);
  PlainRows<kOffloaded> rows;
  uint32_t done = 0;  // units of the list
  for (uint32_t unit = share.first; unit < share.first + share.count; ++unit) {
    const FewItem& item = call.items[place.item];
    const uint32_t entries = SplitEntries(item, place.split), used = place.Heads(call);
    const float* q = call.q + place.Offset(call, item.token);
    for (uint32_t i = threadIdx.x; i < used * call.head_dim; i += blockDim.x) query[i] = q[i];
    __syncthreads();
    heads.Reset(used);
    const uint32_t first = place.split * item.split_entries;
    const uint32_t* selection = item.selection;
    if (selection) selection += place.head * item.selection_stride + first;
    for (uint32_t run = warp * kWarp; run < entries; run += kPlainWarps * kWarp) {
      const uint32_t entry = run + lane;
      const bool there = entry < entries;
      const uint32_t token = there && selection ? selection[entry] : first + entry;
      const std::byte* row = rows.Find(item, place.head, token, there, first + run);
      heads.AddRows(row, min(entries - run, kWarp));
      rows.End();
    }
    heads.Store(results + warp * call.pass_heads * call.ResultFloats());
    FinishUnit<kPlainWarps>(call, share, unit, place, done, results);
  }
  rows.NoteTimes(call);
}

}  // namespace
}  // namespace sparsekv::cuda
