#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

#include "kernels/attention.h"
#include "kernels/copy_ahead.h"
#include "kernels/hot_rows.h"
#include "kernels/labels.h"
#include "kernels/rows.h"

// The tables of kernels/*.h as kernels see them: plain values, every layout resolved. Offsets are
// 64 bits wide: pools are larger than 2^31 elements.
namespace sparsekv::cuda {

struct RowsView {
  std::byte* base;         // of the layer
  const uint32_t* blocks;  // [ceil(tokens / 64)]
  uint64_t block_stride;
  uint32_t head_stride;
  uint32_t row_bytes;

  __device__ std::byte* Row(uint32_t kv_head, uint32_t token) const {
    return base + blocks[token / kBlockTokens] * block_stride + uint64_t{kv_head} * head_stride +
           (token % kBlockTokens) * row_bytes;
  }
};

inline RowsView ViewOf(const RowTable& table) {
  return {table.layer_base, table.blocks, table.layout->block_stride(),
          static_cast<uint32_t>(table.layout->head_stride()),
          static_cast<uint32_t>(table.layout->row_bytes())};
}

struct LabelsView {
  std::byte* const* pages;  // [ceil(tokens / 64)]
  uint64_t layer_offset;
  uint32_t head_stride;
  uint32_t channels;
  uint32_t bits;  // of a code; 16: bfloat16

  // As LabelLayout says.
  __device__ std::byte* Head(uint32_t kv_head, uint32_t page) const {
    return pages[page] + layer_offset + uint64_t{kv_head} * head_stride;
  }
};

inline LabelsView ViewOf(const LabelTable& table) {
  return {table.pages, table.layer * table.layout->layer_stride(),
          static_cast<uint32_t>(table.layout->head_stride()), table.layout->channels,
          CodeBits(table.layout->format)};
}

struct SlotsView {
  RowsView rows;
  SlotMeta* meta;
  std::byte* const* map_pages;
  uint64_t set_offset;  // entries of a map page before the set's
  uint32_t kv_heads;
  uint32_t slots;

  __device__ SlotMeta& Meta(uint32_t kv_head, uint32_t slot) const {
    const uint64_t block = rows.blocks[slot / kBlockTokens];
    return meta[(block * kv_heads + kv_head) * kBlockTokens + slot % kBlockTokens];
  }
  __device__ uint16_t& SlotOf(uint32_t kv_head, uint32_t token) const {
    auto* page = reinterpret_cast<uint16_t*>(map_pages[token / kBlockTokens]);
    return page[set_offset + kv_head * kBlockTokens + token % kBlockTokens];
  }
};

inline SlotsView ViewOf(const SlotTable& table) {
  return {ViewOf(table.rows),
          table.meta,
          table.map_pages,
          table.set * table.map_layout->set_entries(),
          table.map_layout->kv_heads,
          table.slots};
}

struct OffloadedView {
  SlotsView hot;
  RowsView landing;  // without blocks: none
  bool kept;
  CopyProgress* ahead;  // null: nothing is on its way to `hot`

  // Where a slot is named, its row is seen whole (CopyAhead).
  __device__ uint32_t SlotOf(uint32_t kv_head, uint32_t token) const {
    if (hot.slots == 0) return kNotHot;
    uint16_t slot;
    asm volatile("ld.acquire.gpu.global.u16 %0, [%1];"
                 : "=h"(slot)
                 : "l"(&hot.SlotOf(kv_head, token))
                 : "memory");
    return slot;
  }
  __device__ void StopAhead() const {
    if (ahead != nullptr) *reinterpret_cast<volatile uint32_t*>(&ahead->stop) = 1;
  }
};

inline OffloadedView ViewOf(const OffloadedRows& offloaded) {
  OffloadedView view{};
  if (offloaded.hot.slots > 0) view.hot = ViewOf(offloaded.hot);
  if (offloaded.landing.blocks != nullptr) view.landing = ViewOf(offloaded.landing);
  view.kept = offloaded.kept;
  view.ahead = offloaded.ahead;
  return view;
}

// One element of an array of the type, as float32 and back, rounded to nearest even.
template <typename T>
__device__ inline float ToFloat(T value);
template <>
__device__ inline float ToFloat(float value) {
  return value;
}
template <>
__device__ inline float ToFloat(__half value) {
  return __half2float(value);
}
template <>
__device__ inline float ToFloat(__nv_bfloat16 value) {
  return __bfloat162float(value);
}
template <typename T>
__device__ inline T FromFloat(float value);
template <>
__device__ inline float FromFloat(float value) {
  return value;
}
template <>
__device__ inline __half FromFloat(float value) {
  return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 FromFloat(float value) {
  return __float2bfloat16_rn(value);
}

// Calls f with a value of the element type: f(float{}), f(__half{}) or f(__nv_bfloat16{}).
template <typename F>
void WithType(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kF32:
      return f(float{});
    case DType::kF16:
      return f(__half{});
    case DType::kBF16:
      return f(__nv_bfloat16{});
  }
}

}  // namespace sparsekv::cuda
