#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/begin_kernel.cuh"
#include "kernels/cuda/linear_few_operands.cuh"
#include "kernels/cuda/load_shared.cuh"
#include "kernels/cuda/read_once.cuh"

// The kernel of a decode step's products; linear_few.cu says how it is used.
//
// A row's inputs are cut into lines of 128 bytes; part p of 8 has lines p, p + 8, ..., and a warp
// sums a part of 16 or 32 rows. The parts' sums are added in their order. Nothing of that depends
// on the tokens or on how rows are divided, so a token's result depends on itself alone.
//
// Weights, and operands of more than 8 tokens, pass through a ring in shared memory by cp.async, so
// that a multiprocessor has 50 to 160 KB on their way all the time. What is left to count is
// instructions: there are few warps to hide each other's waiting.
namespace sparsekv::cuda::few {

constexpr uint32_t kParts = 8;
constexpr uint32_t kLineChunks = 2;
constexpr uint32_t kLineBytes = kLineChunks * kChunk * 2;
constexpr uint32_t kMostOutputs = 4;

struct Matrix {
  const void* weight;
  float* y;
  uint32_t rows;
  uint32_t first_cta;
};

// One launch: some matrices with the same inputs, or gate and up.
struct Work {
  const float* x;         // [tokens, inputs], of up to 8 tokens
  const uint4* operands;  // of more
  std::array<Matrix, kMostOutputs> matrices;
  uint32_t count;
  uint32_t tokens;
  uint32_t inputs;
  uint32_t accumulate;
};
static_assert(std::has_unique_object_representations_v<Work>);  // its bytes are a step's shape

// A CTA: 8 warps, a part each, with kRowTiles x 16 rows and kTokenTiles x 8 tokens. Up to 8 tokens
// are made operands by every CTA for itself, and a stage of the ring is a line; more come as
// operands, and a stage is half a line. Measured: 16 rows where x is small, so that a matrix of
// 4,096 rows has CTAs for all multiprocessors; 32 where operands are as many bytes as the weights.
template <int token_tiles, uint32_t stages>
struct Shape {
  static constexpr int kTokenTiles = token_tiles;
  static constexpr uint32_t kStages = stages;
  static constexpr bool kRingOperands = kTokenTiles > 1;
  static constexpr uint32_t kStageChunks = kRingOperands ? 1 : kLineChunks;
  static constexpr uint32_t kRowTiles = kRingOperands ? 2 : 1;

  static constexpr uint32_t kThreads = kParts * 32;
  static constexpr uint32_t kRows = kRowTiles * kTileRows;
  static constexpr uint32_t kWarpBytes = kStageChunks * kRows * kChunk * 2;
  static constexpr uint32_t kChunkOperands = kRingOperands ? kTokenTiles * kOperands : 0;
  static constexpr uint32_t kPartBytes = kStageChunks * kChunkOperands * 16;
  static constexpr uint32_t kStageBytes = kParts * (kWarpBytes + kPartBytes);
  static constexpr uint32_t kSumStride = kTokenTiles * kTileTokens + 1;
  static constexpr uint32_t kSumBytes = kParts * kRows * kSumStride * 4;
  static constexpr uint32_t kSharedBytes = std::max(kStages * kStageBytes, kSumBytes);
  static constexpr uint32_t kCtas = std::max(1u, 200'000 / kSharedBytes);  // of a multiprocessor
};

__device__ inline uint32_t Lane() { return threadIdx.x % 32; }
__device__ inline uint32_t Warp() { return threadIdx.x / 32; }

__device__ inline void CopyAhead(uint32_t to, const void* from, uint32_t bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(bytes)
               : "memory");
}
// Of weights, which are read once for 32 tokens.
__device__ inline void CopyOnceAhead(uint32_t to, const void* from, uint32_t bytes) {
  asm volatile(
      "cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;" ::"r"(to),
      "l"(from), "r"(bytes), "l"(ReadOnce())
      : "memory");
}
__device__ inline void EndStage() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <uint32_t kPending>
__device__ inline void WaitForStage() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// A warp's way through its part.
template <typename T, typename S>
class Part {
 public:
  using Sums = TileSums[S::kRowTiles][S::kTokenTiles];

  // row_at(i): where row i of the CTA lies. Brings what can be brought before the tokens' inputs
  // are there.
  template <typename RowAt>
  __device__ Part(const Work& work, const RowAt& row_at) {
    extern __shared__ uint4 ring[];
    const auto start = static_cast<uint32_t>(__cvta_generic_to_shared(ring));
    weights_ = start + Warp() * S::kWarpBytes + Lane() * 16;
    operands_ = start + kParts * S::kWarpBytes + Warp() * S::kPartBytes;
    const uint32_t lines = (work.inputs + kChunk * kLineChunks - 1) / (kChunk * kLineChunks);
    const uint32_t own = (lines + kParts - 1 - Warp()) / kParts;
    stages_ = own * (kLineChunks / S::kStageChunks);
    weights_left_ = operands_left_ = stages_;
    const uint32_t first = Warp() * kLineChunks * kChunk + Lane() % 4 * 8;
    inputs_left_ = static_cast<int32_t>(work.inputs - first);
#pragma unroll
    for (uint32_t i = 0; i < 2 * S::kRowTiles; ++i) {
      rows_[i] = row_at(Lane() / 4 + i * 8) + uint64_t{first} * 2;
    }
    if constexpr (S::kRingOperands) {
      from_ = work.operands + Warp() * kLineChunks * S::kChunkOperands + Lane();
    } else {
      token_there_ = Lane() / 4 < work.tokens;
      x_ = work.x + uint64_t{token_there_ ? Lane() / 4 : 0} * work.inputs + first;
      x_left_ = inputs_left_;
    }
#pragma unroll
    for (uint32_t i = 0; i + 1 < S::kStages; ++i) {
      BringWeights(i * S::kStageBytes);
      if constexpr (!S::kRingOperands) EndStage();
    }
  }

  __device__ void Multiply(Sums& sums) {
    if constexpr (S::kRingOperands) {
#pragma unroll
      for (uint32_t i = 0; i + 1 < S::kStages; ++i) {
        BringOperands(i * S::kStageBytes);
        EndStage();
      }
      Loop([&](uint32_t stage) { MultiplyRing(stage, sums); });
    } else {
      Ahead ahead = LoadInputs();
      Loop([&](uint32_t stage) {
        Inputs x[S::kStageChunks];
#pragma unroll
        for (uint32_t i = 0; i < S::kStageChunks; ++i) {
          x[i] = Inputs::Of<T>(ahead.at[2 * i], ahead.at[2 * i + 1]);
        }
        ahead = LoadInputs();
        MultiplyOwn(stage, x, sums);
      });
    }
  }

 private:
  struct Ahead {
    float4 at[2 * S::kStageChunks];
  };

  // From a stage to the next of the part, in inputs of the row; the count that is left after it
  // says which half of a line it was.
  __device__ static uint32_t Step(uint32_t left) {
    constexpr uint32_t kLines = kParts * kLineChunks * kChunk;
    if constexpr (S::kStageChunks == kLineChunks) return kLines;
    return left % 2 == 0 ? kLines - kChunk : kChunk;
  }

  template <typename Multiply>
  __device__ void Loop(const Multiply& multiply) {
    uint32_t stage = 0, free = (S::kStages - 1) * S::kStageBytes;
#pragma unroll 1
    for (uint32_t left = stages_; left > 0; --left) {
      WaitForStage<S::kStages - 2>();
      if constexpr (S::kRingOperands) __syncwarp();
      BringWeights(free);
      if constexpr (S::kRingOperands) BringOperands(free);
      EndStage();
      free = stage;
      multiply(stage);
      stage = stage + S::kStageBytes == S::kStages * S::kStageBytes ? 0 : stage + S::kStageBytes;
    }
  }

  // What a lane brings it also reads. Inputs beyond the last become zeros.
  __device__ void BringWeights(uint32_t stage) {
    if (weights_left_ == 0) return;
    --weights_left_;
    const uint32_t step = Step(weights_left_);
#pragma unroll
    for (uint32_t chunk = 0; chunk < S::kStageChunks; ++chunk) {
      const uint32_t bytes = inputs_left_ > static_cast<int32_t>(chunk * kChunk) ? 16 : 0;
#pragma unroll
      for (uint32_t i = 0; i < 2 * S::kRowTiles; ++i) {
        CopyOnceAhead(WeightsAt(stage, chunk) + i * 512, rows_[i] + chunk * kChunk * 2, bytes);
      }
    }
    inputs_left_ -= static_cast<int32_t>(step);
#pragma unroll
    for (uint32_t i = 0; i < 2 * S::kRowTiles; ++i) rows_[i] += step * 2;
  }

  // What a lane brings others read. There are operands to the end of the last line.
  __device__ void BringOperands(uint32_t stage) {
    if (operands_left_ == 0) return;
    --operands_left_;
#pragma unroll
    for (uint32_t i = 0; i < S::kStageChunks * S::kChunkOperands / 32; ++i) {
      CopyAhead(operands_ + stage + (i * 32 + Lane()) * 16, from_ + i * 32, 16);
    }
    from_ += uint64_t{Step(operands_left_)} / kChunk * S::kChunkOperands;
  }

  // Of the stage that comes next.
  __device__ Ahead LoadInputs() {
    static_assert(S::kStageChunks == kLineChunks);
    Ahead ahead = {};
#pragma unroll
    for (uint32_t chunk = 0; chunk < S::kStageChunks; ++chunk) {
      if (token_there_ && x_left_ > static_cast<int32_t>(chunk * kChunk)) {
        const auto* from = reinterpret_cast<const float4*>(x_ + chunk * kChunk);
        ahead.at[2 * chunk] = from[0];
        ahead.at[2 * chunk + 1] = from[1];
      }
    }
    x_ += Step(0);
    x_left_ -= static_cast<int32_t>(Step(0));
    return ahead;
  }

  __device__ uint32_t WeightsAt(uint32_t stage, uint32_t chunk) const {
    return weights_ + stage + chunk * (S::kRows * kChunk * 2);
  }

  __device__ void MultiplyOwn(uint32_t stage, const Inputs (&x)[S::kStageChunks],
                              Sums& sums) const {
#pragma unroll
    for (uint32_t chunk = 0; chunk < S::kStageChunks; ++chunk) {
      const uint32_t at = WeightsAt(stage, chunk);
#pragma unroll
      for (uint32_t tile = 0; tile < S::kRowTiles; ++tile) {
        const uint4 row = LoadShared(at + tile * 1024), row8 = LoadShared(at + tile * 1024 + 512);
        sums[tile][0].template Add<T>(row, row8, x[chunk]);
      }
    }
  }

  __device__ void MultiplyRing(uint32_t stage, Sums& sums) const {
#pragma unroll
    for (uint32_t chunk = 0; chunk < S::kStageChunks; ++chunk) {
      const uint32_t at = WeightsAt(stage, chunk);
      const uint32_t operands = operands_ + stage + chunk * S::kChunkOperands * 16 + Lane() * 16;
      uint4 rows[2 * S::kRowTiles];
#pragma unroll
      for (uint32_t i = 0; i < 2 * S::kRowTiles; ++i) rows[i] = LoadShared(at + i * 512);
#pragma unroll
      for (int tokens = 0; tokens < S::kTokenTiles; ++tokens) {
        const Inputs x = {LoadShared(operands + tokens * 1024),
                          LoadShared(operands + tokens * 1024 + 512)};
#pragma unroll
        for (uint32_t tile = 0; tile < S::kRowTiles; ++tile) {
          sums[tile][tokens].template Add<T>(rows[2 * tile], rows[2 * tile + 1], x);
        }
      }
    }
  }

  uint32_t weights_, operands_;  // where the lane's, the part's lie in the first stage
  uint32_t stages_, weights_left_, operands_left_;
  int32_t inputs_left_, x_left_ = 0;  // from the lane's next to the end of the row
  const char* rows_[2 * S::kRowTiles];
  const uint4* from_ = nullptr;
  const float* x_ = nullptr;
  bool token_there_ = false;
};

// Sums of all parts: [part][row][token], in what was the ring.
template <typename S>
__device__ inline void ShareSums(const TileSums (&sums)[S::kRowTiles][S::kTokenTiles],
                                 float* shared) {
  const uint32_t group = Lane() / 4, pair = Lane() % 4;
  float* own = shared + Warp() * S::kRows * S::kSumStride;
#pragma unroll
  for (uint32_t rows = 0; rows < S::kRowTiles; ++rows) {
#pragma unroll
    for (int tile = 0; tile < S::kTokenTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t row = rows * kTileRows + group + i / 2 * 8;
        own[row * S::kSumStride + tile * kTileTokens + pair * 2 + i % 2] =
            sums[rows][tile].high[i] + sums[rows][tile].low[i];
      }
    }
  }
}

template <typename S>
__device__ inline float SumOfParts(const float* shared, uint32_t row, uint32_t token) {
  float sum = 0;
#pragma unroll
  for (uint32_t part = 0; part < kParts; ++part) {
    sum += shared[(part * S::kRows + row) * S::kSumStride + token];
  }
  return sum;
}

// Where y is [tokens, rows].
template <bool kGateUp, typename S>
__device__ inline void Write(const Work& work, const Matrix& matrix, uint32_t first_row,
                             const float* shared) {
  constexpr uint32_t kOut = S::kRows / (kGateUp ? 2 : 1);
  for (uint32_t i = threadIdx.x; i < kOut * work.tokens; i += S::kThreads) {
    const uint32_t row = i % kOut, token = i / kOut;
    if (first_row + row >= matrix.rows) continue;
    float value = SumOfParts<S>(shared, row, token);
    float* to = matrix.y + uint64_t{token} * matrix.rows + first_row + row;
    if (kGateUp) {
      const float up = SumOfParts<S>(shared, kOut + row, token);
      value = value / (1 + __expf(-value)) * up;
    } else if (work.accumulate) {
      value += *to;
    }
    *to = value;
  }
}

template <typename T, bool kGateUp, typename S>
__global__ void __launch_bounds__(S::kThreads, S::kCtas)
    MmaKernel(const __grid_constant__ Work work) {
  extern __shared__ uint4 ring[];
  constexpr uint32_t kOut = S::kRows / (kGateUp ? 2 : 1);
  uint32_t which = 0;
  if (!kGateUp) {
    while (which + 1 < work.count && blockIdx.x >= work.matrices[which + 1].first_cta) ++which;
  }
  const Matrix& matrix = work.matrices[which];
  const uint32_t first_row = (blockIdx.x - matrix.first_cta) * kOut;
  // Beyond the last row that row again: nobody writes what comes of it.
  Part<T, S> part(work, [&](uint32_t i) {
    const uint32_t row = min(first_row + i % kOut, matrix.rows - 1);
    const void* base = kGateUp ? work.matrices[i / kOut].weight : matrix.weight;
    return static_cast<const char*>(base) + uint64_t{row} * work.inputs * 2;
  });
  BeginKernel();
  TileSums sums[S::kRowTiles][S::kTokenTiles];
  part.Multiply(sums);
  NextMayBegin();
  __syncthreads();  // nobody reads the ring any more
  auto* shared = reinterpret_cast<float*>(ring);
  ShareSums<S>(sums, shared);
  __syncthreads();
  Write<kGateUp, S>(work, matrix, first_row, shared);
}

}  // namespace sparsekv::cuda::few
