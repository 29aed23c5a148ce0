#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/rows_done.cuh"
#include "kernels/cuda/tables.cuh"

// Attention of single tokens over long lists of rows: how the work is cut, and how results of the
// parts become one. The kernels that make the parts' results are attention_few_mma.cuh and
// attention_few_plain.cuh.
//
// A unit is one split of the list of one (item, KV head), for up to kPassHeads query heads of its
// group. Units are numbered over the whole call, in the order of the lists or, where the kernel
// before selects them, in the order in which they are selected; a CTA takes a run of them. The
// warps of a CTA share a unit's rows, and each has a result of its own: per query head the highest
// score, the sum of the weights and the weighted sum of the values, unnormalised. FinishUnit merges
// those in the order of the warps, FinishList the splits in their order, done by whichever CTA
// finishes the last of them. Scores are in powers of two: exp(scale * dot) = exp2(score).
namespace sparsekv::cuda {
namespace {

constexpr uint32_t kWarp = 32;
constexpr uint32_t kAllLanes = 0xFFFFFFFF;
constexpr uint32_t kPassHeads = 8;  // query heads that one reading of the rows serves
constexpr uint32_t kMostSplits = 256;
// A result is head_dim sums, the highest score and the total weight, padded so that results keep
// alignment and that what mma leaves in registers goes to different banks.
constexpr uint32_t kTail = 4;

struct FewItem {
  RowsView rows;
  const uint32_t* selection;  // null = dense
  uint64_t selection_stride;
  uint32_t token;  // in q and out
  uint32_t entries;
  uint32_t split_entries;
  uint32_t splits;
  const OffloadedView* offloaded;  // null: all rows are where `rows` says
};

struct FewCall {
  const float* q;
  float* out;
  const FewItem* items;
  const uint32_t* first_units;  // [item_count + 1]
  uint32_t* tickets;            // [item_count, kv_heads] units done, zero before the call
  float* partials;              // [units, pass_heads, head_dim + kTail]
  CopyTimes* times;             // null, or of what comes over the link
  RowsDone rows_done;           // none: all lists are there, else all have as many splits
  uint32_t item_count;
  uint32_t kv_heads;
  uint32_t group;
  uint32_t head_dim;
  uint32_t passes;      // ceil(group / kPassHeads)
  uint32_t pass_heads;  // min(group, kPassHeads)
  float scale;          // log2(e) * the scale of the dot products
  uint32_t unused;

  __device__ uint32_t ResultFloats() const { return head_dim + kTail; }
};
static_assert(sizeof(FewCall) == 104);  // arguments are hashed as bytes: there is no padding

// Which part a unit is.
struct Place {
  uint32_t list;  // in the order of the units
  uint32_t item;
  uint32_t head;
  uint32_t split;
  uint32_t pass;

  // To the next unit. The passes over the same rows follow each other, so that later ones find them
  // in the cache.
  __device__ void Advance(const FewCall& call, uint32_t splits) {
    if (++pass < call.passes) return;
    pass = 0;
    if (++split < splits) return;
    split = 0;
    ++list;
    if (++head < call.kv_heads) return;
    head = 0;
    ++item;
  }
  // Before a unit that Advance led to: which list it is, once that is known.
  __device__ void Find(const FewCall& call) {
    if (call.rows_done.any() && split == 0 && pass == 0) WaitForList(call);
  }
  __device__ void WaitForList(const FewCall& call) {
    const uint32_t row = WaitForRow(call.rows_done, list);
    item = row / call.kv_heads;
    head = row % call.kv_heads;
  }
  __device__ uint32_t Heads(const FewCall& call) const {
    return min(call.group - pass * kPassHeads, kPassHeads);
  }
  // Of the first query head, in q and in out.
  __device__ uint64_t Offset(const FewCall& call, uint32_t token) const {
    const uint64_t head_of_all =
        (uint64_t{token} * call.kv_heads + head) * call.group + pass * kPassHeads;
    return head_of_all * call.head_dim;
  }
};

__device__ inline uint32_t SplitEntries(const FewItem& item, uint32_t split) {
  return min(item.split_entries, item.entries - split * item.split_entries);
}

// The units of this CTA. As even as can be, and as many CTAs as there are units have one.
struct Share {
  uint32_t first;
  uint32_t count;
};

__device__ inline Share ShareOfCta(const FewCall& call) {
  const uint32_t units = call.first_units[call.item_count];
  const uint32_t each = units / gridDim.x, more = units % gridDim.x;
  return {blockIdx.x * each + min(blockIdx.x, more), each + (blockIdx.x < more ? 1 : 0)};
}

// By the whole CTA together.
__device__ inline Place PlaceOf(const FewCall& call, uint32_t unit) {
  if (call.rows_done.any()) {
    const uint32_t splits = call.items[0].splits;
    Place place;
    place.list = unit / call.passes / splits;
    place.pass = unit % call.passes;
    place.split = unit / call.passes % splits;
    place.WaitForList(call);
    return place;
  }
  uint32_t begun = 0;  // items that begin at the unit or before
  for (uint32_t base = 0; base < call.item_count; base += blockDim.x) {
    const uint32_t i = base + threadIdx.x;
    begun += __syncthreads_count(i < call.item_count && call.first_units[i] <= unit);
  }
  Place place;
  place.item = begun - 1;
  const uint32_t within = unit - call.first_units[place.item];
  const uint32_t splits = call.items[place.item].splits;
  place.pass = within % call.passes;
  place.split = within / call.passes % splits;
  place.head = within / call.passes / splits;
  place.list = place.item * call.kv_heads + place.head;
  return place;
}

// By the first CTA, which always has a unit, when it has its rows: what is still on its way into
// slots is given up, as the link is needed now.
__device__ inline void StopAhead(const FewCall& call) {
  if (blockIdx.x != 0) return;
  for (uint32_t i = threadIdx.x; i < call.item_count; i += blockDim.x) {
    if (call.items[i].offloaded != nullptr) call.items[i].offloaded->StopAhead();
  }
}

// ---- Merging

__device__ inline void AddWeighted(float4& sum, float weight, float4 value) {
  sum.x = fmaf(weight, value.x, sum.x);
  sum.y = fmaf(weight, value.y, sum.y);
  sum.z = fmaf(weight, value.z, sum.z);
  sum.w = fmaf(weight, value.w, sum.w);
}

// Merges the results [kWarps, pass_heads] of a unit in shared memory, either to a result in `to`
// or, where the unit is the whole list, to the normalised output.
template <uint32_t kWarps>
__device__ void MergeWarps(const FewCall& call, const float* results, uint32_t heads, bool whole,
                           float* to) {
  const uint32_t floats = call.ResultFloats(), vectors = call.head_dim / 4;
  for (uint32_t i = threadIdx.x; i < heads * vectors; i += kWarps * kWarp) {
    const uint32_t head = i / vectors, c = (i - head * vectors) * 4;
    const float* first = results + head * floats;
    const uint32_t step = call.pass_heads * floats;
    float highest = -INFINITY;
#pragma unroll
    for (uint32_t w = 0; w < kWarps; ++w) {
      highest = fmaxf(highest, first[w * step + call.head_dim]);
    }
    float total = 0;
    float4 sum = {0, 0, 0, 0};
#pragma unroll
    for (uint32_t w = 0; w < kWarps; ++w) {
      const float* result = first + w * step;
      const float weight = exp2f(result[call.head_dim] - highest);
      total = fmaf(weight, result[call.head_dim + 1], total);
      AddWeighted(sum, weight, *reinterpret_cast<const float4*>(result + c));
    }
    if (whole) {
      *reinterpret_cast<float4*>(to + head * call.head_dim + c) =
          make_float4(sum.x / total, sum.y / total, sum.z / total, sum.w / total);
    } else {
      *reinterpret_cast<float4*>(to + head * floats + c) = sum;
      if (c == 0) {
        *reinterpret_cast<float2*>(to + head * floats + call.head_dim) =
            make_float2(highest, total);
      }
    }
  }
}

// The share of each split in one head's output, to weights[split].x; by one warp.
__device__ inline void WeighSplits(const float* tails, uint32_t step, uint32_t splits,
                                   float2* weights) {
  const uint32_t lane = threadIdx.x % kWarp;
  float highest = -INFINITY;
  for (uint32_t s = lane; s < splits; s += kWarp) {
    const float2 tail = __ldcg(reinterpret_cast<const float2*>(tails + uint64_t{s} * step));
    weights[s] = tail;
    highest = fmaxf(highest, tail.x);
  }
#pragma unroll
  for (uint32_t d = kWarp / 2; d > 0; d /= 2) {
    highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, d));
  }
  float total = 0;
  for (uint32_t s = lane; s < splits; s += kWarp) {
    const float weight = exp2f(weights[s].x - highest);
    total = fmaf(weight, weights[s].y, total);
    weights[s].x = weight;
  }
#pragma unroll
  for (uint32_t d = kWarp / 2; d > 0; d /= 2) total += __shfl_xor_sync(kAllLanes, total, d);
  for (uint32_t s = lane; s < splits; s += kWarp) weights[s].x /= total;
}

// Merges results of `splits` splits, `step` floats from one to the next, to the output. `weights`:
// shared, [pass_heads, kMostSplits]. Ends with a barrier.
template <uint32_t kWarps>
__device__ void MergeSplits(const FewCall& call, const float* partials, uint32_t step,
                            uint32_t splits, uint32_t heads, float2* weights, float* out) {
  const uint32_t floats = call.ResultFloats(), vectors = call.head_dim / 4;
  for (uint32_t head = threadIdx.x / kWarp; head < heads; head += kWarps) {
    WeighSplits(partials + head * floats + call.head_dim, step, splits,
                weights + head * kMostSplits);
  }
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < heads * vectors; i += kWarps * kWarp) {
    const uint32_t head = i / vectors, c = (i - head * vectors) * 4;
    const float* from = partials + head * floats + c;
    float4 sum = {0, 0, 0, 0};
#pragma unroll 8
    for (uint32_t s = 0; s < splits; ++s) {
      AddWeighted(sum, weights[head * kMostSplits + s].x,
                  __ldcg(reinterpret_cast<const float4*>(from + uint64_t{s} * step)));
    }
    *reinterpret_cast<float4*>(out + head * call.head_dim + c) = sum;
  }
  __syncthreads();
}

// Whether this CTA is the last to come here of all that have units of the place's list, `done` of
// which it has done itself; what the others wrote before is seen by it then.
__device__ inline bool IsLastOfList(const FewCall& call, const Place& place, uint32_t done,
                                    uint32_t units) {
  __shared__ uint32_t done_before;
  if (threadIdx.x == 0) {
    // With the barriers before and after, this orders what the whole CTA wrote and reads.
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;"
                 : "=r"(done_before)
                 : "l"(call.tickets + place.item * call.kv_heads + place.head), "r"(done)
                 : "memory");
  }
  __syncthreads();
  return done_before + done == units;
}

// By the whole CTA, after `unit`, the last of the `done` units that it has in a row of one list.
// `results` is overwritten.
template <uint32_t kWarps>
__device__ void FinishList(const FewCall& call, Place place, uint32_t unit, uint32_t done,
                           float* results) {
  const FewItem& item = call.items[place.item];
  const uint32_t units = item.splits * call.passes;
  if (item.splits == 1 || !IsLastOfList(call, place, done, units)) return;
  const uint32_t unit_floats = call.pass_heads * call.ResultFloats();
  const uint32_t first = unit - (place.split * call.passes + place.pass);
  const float* partials = call.partials + uint64_t{first} * unit_floats;
  for (place.pass = 0; place.pass < call.passes; ++place.pass, partials += unit_floats) {
    MergeSplits<kWarps>(call, partials, call.passes * unit_floats, item.splits, place.Heads(call),
                        reinterpret_cast<float2*>(results),
                        call.out + place.Offset(call, item.token));
  }
}

// By the whole CTA, when each of its warps has written its results of the unit, which is at
// `place`, to `results`, shared memory of ResultBytes(). They may be overwritten after. Leads to
// the next unit; `done`: units of its list that the CTA has done in a row.
template <uint32_t kWarps>
__device__ void FinishUnit(const FewCall& call, const Share& share, uint32_t unit, Place& place,
                           uint32_t& done, float* results) {
  const FewItem& item = call.items[place.item];
  const bool whole = item.splits == 1;
  float* partial = call.partials + uint64_t{unit} * call.pass_heads * call.ResultFloats();
  __syncthreads();
  MergeWarps<kWarps>(call, results, place.Heads(call), whole,
                     whole ? call.out + place.Offset(call, item.token) : partial);
  __syncthreads();
  const Place of_list = place;
  place.Advance(call, item.splits);
  ++done;
  if (unit + 1 < share.first + share.count && place.list == of_list.list) return;
  FinishList<kWarps>(call, of_list, unit, done, results);
  done = 0;
}

constexpr size_t ResultBytes(uint32_t warps, uint32_t pass_heads, uint32_t head_dim) {
  const size_t results = size_t{warps} * (head_dim + kTail) * sizeof(float);
  const size_t weights = kMostSplits * sizeof(float2);
  return pass_heads * (results > weights ? results : weights);
}

}  // namespace
}  // namespace sparsekv::cuda
