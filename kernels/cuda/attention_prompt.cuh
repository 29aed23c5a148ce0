#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/tables.cuh"

// Dense attention of a prompt's tokens: how its work is cut, and the steps that its kernels share.
//
// A query row is one head of one token. The query rows of an item at one KV head are numbered token
// by token, row = token * group + head in the group, so that a tile of consecutive ones reads the
// rows of K and V once for all its heads. A CTA takes one such tile over KV tiles from the list's
// start on, with an online softmax. A KV tile that lies beyond a query row's position leaves its
// state as it was, to the bit: maximum unchanged, factor exp2(0) = 1, weights 0. So a row's result
// does not depend on which rows share its tile.
namespace sparsekv::cuda::prompt {

struct Item {
  RowsView rows;
  uint32_t first;  // token of the step
  uint32_t tokens;
  uint32_t position;
};

struct Tile {
  uint32_t item;
  uint32_t first_row;  // of the item's query rows
};

// What a kernel is given.
struct Task {
  const float* q;
  float* out;
  const Item* items;
  const Tile* tiles;  // the longest lists first
  uint32_t kv_heads;
  uint32_t group;
  uint32_t head_dim;
  float scale;  // of scores that are powers of two: AttendArgs::scale * log2(e), above zero
};

// What a CTA does: one tile at one KV head. Lies in shared memory: registers are for the sums.
struct Work {
  Item item;
  uint32_t kv_head;
  uint32_t first_row;
  uint32_t rows;    // of the item; those from here on are computed and not stored
  uint32_t length;  // of the longest list of the tile's rows; the table is known up to there
  uint32_t common;  // the first entries, which are in every row's list
};

// Ends with a barrier.
__device__ inline void FindWork(const Task& task, uint32_t tile_rows, Work& work) {
  if (threadIdx.x == 0) {
    const Tile tile = task.tiles[blockIdx.x / task.kv_heads];
    const Item item = task.items[tile.item];
    const uint32_t rows = item.tokens * task.group;
    const uint32_t last_row = min(tile.first_row + tile_rows, rows) - 1;
    work = {item,
            blockIdx.x % task.kv_heads,
            tile.first_row,
            rows,
            item.position + last_row / task.group + 1,
            item.position + tile.first_row / task.group + 1};
  }
  __syncthreads();
}

// The last entry of a query row's list.
__device__ inline uint32_t LastEntry(const Task& task, const Work& work, uint32_t row) {
  return work.item.position + row / task.group;
}

// Where a query row lies in q and in out.
__device__ inline size_t ValueOf(const Task& task, const Work& work, uint32_t row) {
  const size_t token = size_t{work.item.first} + row / task.group;
  return ((token * task.kv_heads + work.kv_head) * task.group + row % task.group) * task.head_dim;
}

__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// 16 bytes to shared memory, zeros unless `there`. `from` is a valid address in either case.
__device__ inline void CopyAsync(uint32_t to, const std::byte* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
}

// Of this thread's copies.
__device__ inline void WaitForCopies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

}  // namespace sparsekv::cuda::prompt
