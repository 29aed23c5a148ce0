#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.h"
#include "kernels/cuda/begin_kernel.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/tables.cuh"

// Products of a decode step: few tokens, so the weights' bytes are the bound (2 per weight of 16
// bits, each read once from device memory; x comes from the caches).
//
// A CTA has 32 or 64 rows of weights (of GateUp: half of gate and the same of up) and all tokens; 8
// warps divide the inputs of 32 rows, in chunks of 32 taken in turn, and their sums are added in
// the order of the warps. Nothing of that depends on the tokens, so a token's result depends on
// itself alone. Every CTA reads all of x, twice the weights' bytes for 32 tokens and 32 rows: so
// with many tokens 16 warps have 64 rows, and who reads a chunk second finds it in L1. And where
// more than 8 tokens ask for it, x is made operands once, by a kernel before.
//
// Tensor cores: weights are the A operand of m16n8k16, tokens the columns. A thread's 16 bytes of a
// row are eight neighbouring inputs; they serve as the operand's k positions 2t, 2t+1, 2t+8, 2t+9
// of two products, and x is dealt out the same way, so nothing is shuffled. x is the sum of two
// 16-bit numbers, high and low, one product each: 16 bits of it are kept.
namespace sparsekv::cuda {
namespace {

constexpr uint32_t kWarps = 8;  // that divide the inputs of a row
constexpr uint32_t kTileRows = 16;
constexpr uint32_t kRowTiles = 2;  // of a warp
constexpr uint32_t kWarpRows = kRowTiles * kTileRows;
constexpr uint32_t ThreadsFor(uint32_t rows) { return rows / kWarpRows * kWarps * 32; }
constexpr uint32_t kChunk = 32;  // inputs
constexpr uint32_t kTileTokens = 8;
constexpr uint32_t kMostOutputs = 4;

struct Matrix {
  const void* weight;
  float* y;
  uint32_t rows;
  uint32_t first_cta;
};

// One launch: some matrices with the same inputs, or gate and up.
struct Work {
  const float* x;
  std::array<Matrix, kMostOutputs> matrices;
  uint32_t count;
  uint32_t tokens;
  uint32_t inputs;
  uint32_t accumulate;
};

template <typename T>
struct Pair;
template <>
struct Pair<__nv_bfloat16> {
  static __device__ void Split(float a, float b, uint32_t& high, uint32_t& low) {
    const __nv_bfloat162 h = __floats2bfloat162_rn(a, b);
    const __nv_bfloat162 l = __floats2bfloat162_rn(a - __low2float(h), b - __high2float(h));
    high = reinterpret_cast<const uint32_t&>(h);
    low = reinterpret_cast<const uint32_t&>(l);
  }
  static __device__ void Multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                  uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};
template <>
struct Pair<__half> {
  static __device__ float Bounded(float x) {  // NaN stays
    return fabsf(x) > 65504.0f ? copysignf(65504.0f, x) : x;
  }
  static __device__ void Split(float a, float b, uint32_t& high, uint32_t& low) {
    const __half2 h = __floats2half2_rn(Bounded(a), Bounded(b));
    const __half2 l = __floats2half2_rn(Bounded(a - __low2float(h)), Bounded(b - __high2float(h)));
    high = reinterpret_cast<const uint32_t&>(h);
    low = reinterpret_cast<const uint32_t&>(l);
  }
  static __device__ void Multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                  uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

__device__ inline uint4 LoadStreaming(const void* address) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address));
  return value;
}

// Warps that have the same rows follow each other.
__device__ inline uint32_t WarpOfInputs() { return threadIdx.x / 32 % kWarps; }
__device__ inline uint32_t FirstRowOfWarp() { return threadIdx.x / 32 / kWarps * kWarpRows; }

// The rows of a thread in one chunk: rows g and g + 8 of every tile.
struct Weights {
  uint4 row[2 * kRowTiles];
};

// What a thread reads: its rows of all tiles, null where there is none.
struct Reader {
  const char* row[2 * kRowTiles];
  uint32_t inputs;

  __device__ Weights Load(uint32_t chunk) const {
    const uint32_t at = chunk * kChunk + threadIdx.x % 4 * 8;
    Weights weights;
#pragma unroll
    for (uint32_t i = 0; i < 2 * kRowTiles; ++i) {
      weights.row[i] =
          at < inputs && row[i] ? LoadStreaming(row[i] + uint64_t{at} * 2) : make_uint4(0, 0, 0, 0);
    }
    return weights;
  }
};

// Eight neighbouring inputs of a token as an operand.
struct alignas(16) Inputs {
  uint32_t high[4], low[4];

  template <typename T>
  __device__ static Inputs Of(const float4& first, const float4& second) {
    Inputs inputs;
    Pair<T>::Split(first.x, first.y, inputs.high[0], inputs.low[0]);
    Pair<T>::Split(first.z, first.w, inputs.high[1], inputs.low[1]);
    Pair<T>::Split(second.x, second.y, inputs.high[2], inputs.low[2]);
    Pair<T>::Split(second.z, second.w, inputs.high[3], inputs.low[3]);
    return inputs;
  }
};
static_assert(sizeof(Inputs) == 8 * sizeof(float));  // either form takes the other's place

// x [values] as operands. Bytes: 8 per value.
template <typename T>
__global__ void __launch_bounds__(256) SplitKernel(const float4* x, uint32_t count, Inputs* to) {
  BeginKernel();
  NextMayBegin();
  const uint32_t i = blockIdx.x * 256 + threadIdx.x;
  if (i < count) to[i] = Inputs::Of<T>(x[2 * i], x[2 * i + 1]);
}

// sums[tile][token tile] += weights . x, of one chunk. Of more than one tile x is operands already.
template <typename T, int kTokenTiles>
__device__ inline void MultiplyChunk(const Work& work, uint32_t chunk, const Weights& weights,
                                     float (&sums)[kRowTiles][kTokenTiles][4]) {
  const uint32_t at = chunk * kChunk + threadIdx.x % 4 * 8;
  const uint32_t group = threadIdx.x % 32 / 4;
#pragma unroll
  for (int tile = 0; tile < kTokenTiles; ++tile) {
    const uint32_t token = tile * kTileTokens + group;
    // Nothing but loads depends on what is there, so that those of all chunks can go first.
    float4 values[2] = {};
    if (token < work.tokens && at < work.inputs) {
      const auto* from =
          reinterpret_cast<const float4*>(work.x + uint64_t{token} * work.inputs + at);
      values[0] = from[0];
      values[1] = from[1];
    }
    Inputs x;
    if constexpr (kTokenTiles > 1) {
      memcpy(&x, values, sizeof(x));
    } else {
      x = Inputs::Of<T>(values[0], values[1]);
    }
#pragma unroll
    for (uint32_t rows = 0; rows < kRowTiles; ++rows) {
      const uint4 a = weights.row[2 * rows], b = weights.row[2 * rows + 1];
      const uint32_t first[4] = {a.x, b.x, a.y, b.y}, second[4] = {a.z, b.z, a.w, b.w};
      Pair<T>::Multiply(sums[rows][tile], first, x.high[0], x.high[1]);
      Pair<T>::Multiply(sums[rows][tile], second, x.high[2], x.high[3]);
      Pair<T>::Multiply(sums[rows][tile], first, x.low[0], x.low[1]);
      Pair<T>::Multiply(sums[rows][tile], second, x.low[2], x.low[3]);
    }
  }
}

// The sums of all warps: [warp of inputs][row of the CTA][token] in shared memory.
template <uint32_t kRows, int kTokenTiles>
__device__ inline void ShareSums(const float (&sums)[kRowTiles][kTokenTiles][4], float* shared) {
  constexpr uint32_t kTokens = kTokenTiles * kTileTokens;
  float* own = shared + (WarpOfInputs() * kRows + FirstRowOfWarp()) * kTokens;
  const uint32_t group = threadIdx.x % 32 / 4, pair = threadIdx.x % 4;
#pragma unroll
  for (uint32_t rows = 0; rows < kRowTiles; ++rows) {
#pragma unroll
    for (int tile = 0; tile < kTokenTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t row = rows * kTileRows + group + i / 2 * 8;
        own[row * kTokens + tile * kTileTokens + pair * 2 + i % 2] = sums[rows][tile][i];
      }
    }
  }
  __syncthreads();
}

template <uint32_t kRows, int kTokenTiles>
__device__ inline float SumOver(const float* shared, uint32_t row, uint32_t token) {
  constexpr uint32_t kTokens = kTokenTiles * kTileTokens;
  float sum = 0;
#pragma unroll
  for (uint32_t warp = 0; warp < kWarps; ++warp) {
    sum += shared[(warp * kRows + row) * kTokens + token];
  }
  return sum;
}

// Where y is [tokens, rows].
template <bool kGateUp, uint32_t kRows, int kTokenTiles>
__device__ inline void Write(const Work& work, const Matrix& matrix, uint32_t first_row,
                             const float* shared) {
  constexpr uint32_t kOut = kRows / (kGateUp ? 2 : 1);
  for (uint32_t i = threadIdx.x; i < kOut * work.tokens; i += ThreadsFor(kRows)) {
    const uint32_t row = i % kOut, token = i / kOut;
    if (first_row + row >= matrix.rows) continue;
    float value = SumOver<kRows, kTokenTiles>(shared, row, token);
    float* to = matrix.y + uint64_t{token} * matrix.rows + first_row + row;
    if (kGateUp) {
      const float up = SumOver<kRows, kTokenTiles>(shared, kOut + row, token);
      value = value / (1 + __expf(-value)) * up;
    } else if (work.accumulate) {
      value += *to;
    }
    *to = value;
  }
}

template <typename T, bool kGateUp, uint32_t kRows, int kTokenTiles>
__global__ void __launch_bounds__(ThreadsFor(kRows), kRows == kWarpRows ? 2 : 1)
    MmaKernel(const __grid_constant__ Work work) {
  extern __shared__ float shared[];
  constexpr uint32_t kOut = kRows / (kGateUp ? 2 : 1);
  uint32_t which = 0;
  if (!kGateUp) {
    while (which + 1 < work.count && blockIdx.x >= work.matrices[which + 1].first_cta) ++which;
  }
  const Matrix& matrix = work.matrices[which];
  const uint32_t first_row = (blockIdx.x - matrix.first_cta) * kOut;
  Reader reader;
  reader.inputs = work.inputs;
#pragma unroll
  for (uint32_t i = 0; i < 2 * kRowTiles; ++i) {
    const uint32_t in_cta = FirstRowOfWarp() + threadIdx.x % 32 / 4 + i % 2 * 8 + i / 2 * kTileRows;
    const uint32_t row = first_row + in_cta % kOut;
    const void* base = kGateUp ? work.matrices[in_cta / kOut].weight : matrix.weight;
    reader.row[i] = row < matrix.rows
                        ? static_cast<const char*>(base) + uint64_t{row} * work.inputs * 2
                        : nullptr;
  }
  constexpr int kAhead = kTokenTiles > 2 ? 2 : 4;  // chunks that are loaded together
  const uint32_t chunks = (work.inputs + kChunk - 1) / kChunk;
  uint32_t chunk = WarpOfInputs();
  Weights weights[kAhead];
  const auto load = [&] {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) weights[i] = reader.Load(chunk + i * kWarps);
  };
  load();  // weights are there always: they come while the kernel before makes x
  BeginKernel();
  float sums[kRowTiles][kTokenTiles][4] = {};
  for (;;) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      MultiplyChunk<T, kTokenTiles>(work, chunk + i * kWarps, weights[i], sums);
    }
    chunk += kWarps * kAhead;
    if (chunk >= chunks) break;
    load();
  }
  NextMayBegin();
  ShareSums<kRows, kTokenTiles>(sums, shared);
  Write<kGateUp, kRows, kTokenTiles>(work, matrix, first_row, shared);
}

// Any type, any alignment: a warp per output, its lanes' sums added at the end.
template <typename T>
__global__ void PlainKernel(const float* x, const T* weight, float* y, uint32_t tokens,
                            uint32_t inputs, uint32_t outputs, bool accumulate) {
  BeginKernel();
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t output = blockIdx.x * kWarps + threadIdx.x / 32;
  const uint32_t first = blockIdx.y * kTileTokens;
  if (output >= outputs) return;
  float sums[kTileTokens] = {};
  const T* row = weight + uint64_t{output} * inputs;
  for (uint32_t i = lane; i < inputs; i += 32) {
    const float w = ToFloat<T>(row[i]);
#pragma unroll
    for (int t = 0; t < kTileTokens; ++t) {
      if (first + t < tokens) sums[t] = fmaf(w, x[uint64_t{first + t} * inputs + i], sums[t]);
    }
  }
#pragma unroll
  for (int t = 0; t < kTileTokens; ++t) {
    for (int step = 16; step > 0; step /= 2) {
      sums[t] += __shfl_xor_sync(0xFFFFFFFFu, sums[t], step);
    }
    if (lane == 0 && first + t < tokens) {
      float* to = y + uint64_t{first + t} * outputs + output;
      *to = accumulate ? *to + sums[t] : sums[t];
    }
  }
}

void LaunchPlain(const LinearArgs& args, Tape& tape) {
  WithType(args.weight.dtype, [&](auto type) {
    using T = decltype(type);
    tape.Launch(PlainKernel<T>,
                dim3((args.weight.rows + kWarps - 1) / kWarps,
                     (args.tokens + kTileTokens - 1) / kTileTokens),
                kWarps * 32, 0, args.x, static_cast<const T*>(args.weight.data), args.y,
                args.tokens, args.weight.cols, args.weight.rows, args.accumulate);
  });
}

bool Fits(const WeightView& weight, const float* x) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  return weight.dtype != DType::kF32 && weight.cols % 8 == 0 && aligned(weight.data) && aligned(x);
}

// CTAs of so many rows, one matrix after the other; of GateUp they have both.
uint32_t PlaceCtas(Work* work, bool gate_up, uint32_t rows) {
  uint32_t ctas = 0;
  for (uint32_t i = 0; i < work->count; ++i) {
    work->matrices[i].first_cta = gate_up ? 0 : ctas;
    const uint32_t here = (work->matrices[i].rows + rows - 1) / rows;
    ctas = gate_up ? here : ctas + here;
  }
  return ctas;
}

template <bool kGateUp, typename T, uint32_t kRows, int kTokenTiles>
void LaunchTiles(Work work, Tape& tape) {
  const uint32_t ctas = PlaceCtas(&work, kGateUp, kGateUp ? kRows / 2 : kRows);
  const size_t bytes = size_t{kWarps} * kRows * kTokenTiles * kTileTokens * sizeof(float);
  tape.Launch(MmaKernel<T, kGateUp, kRows, kTokenTiles>, ctas, ThreadsFor(kRows), bytes, work);
}

// 64 rows where they are so many that every multiprocessor has some.
template <bool kGateUp, typename T, int kTokenTiles>
void LaunchShared(const Work& work, Tape& tape) {
  uint32_t rows = 0;
  for (uint32_t i = 0; i < work.count; ++i) rows += work.matrices[i].rows;
  if (rows >= 2 * kWarpRows * static_cast<uint32_t>(tape.multiprocessors())) {
    LaunchTiles<kGateUp, T, 2 * kWarpRows, kTokenTiles>(work, tape);
  } else {
    LaunchTiles<kGateUp, T, kWarpRows, kTokenTiles>(work, tape);
  }
}

// x as operands, in scratch: what every CTA would do for itself.
template <typename T>
const float* SplitInputs(const Work& work, Tape& tape) {
  const size_t values = size_t{work.tokens} * work.inputs;
  const auto count = static_cast<uint32_t>(values / 8);
  auto* to = reinterpret_cast<Inputs*>(tape.Scratch(values * sizeof(float)));
  tape.Launch(SplitKernel<T>, (count + 255) / 256, 256, 0, reinterpret_cast<const float4*>(work.x),
              count, to);
  return reinterpret_cast<const float*>(to);
}

// Tokens in parts of at most 32, or of 8 without preparation.
template <bool kGateUp, typename T>
void LaunchMma(Work work, Tape& tape) {
  constexpr uint32_t kMost = 32;
  if (work.tokens > kTileTokens) work.x = SplitInputs<T>(work, tape);
  const Work all = work;
  for (uint32_t from = 0; from < all.tokens; from += kMost) {
    work.tokens = std::min(all.tokens - from, kMost);
    work.x = all.x + size_t{from} * work.inputs;
    for (uint32_t i = 0; i < work.count; ++i) {
      if (float* y = all.matrices[i].y) {
        work.matrices[i].y = y + size_t{from} * work.matrices[i].rows;
      }
    }
    if (all.tokens <= kTileTokens) {
      LaunchTiles<kGateUp, T, kWarpRows, 1>(work, tape);
    } else if (work.tokens <= 16) {
      LaunchShared<kGateUp, T, 2>(work, tape);
    } else {
      LaunchShared<kGateUp, T, 4>(work, tape);
    }
  }
}

template <bool kGateUp>
void LaunchFor(DType dtype, const Work& work, Tape& tape) {
  dtype == DType::kBF16 ? LaunchMma<kGateUp, __nv_bfloat16>(work, tape)
                        : LaunchMma<kGateUp, __half>(work, tape);
}

void ProductsOf(const float* x, uint32_t tokens, std::span<const ProjectArgs::Output> outputs,
                bool accumulate, Tape& tape) {
  CHECK_LE(outputs.size(), size_t{kMostOutputs});
  Work work{};
  work.x = x;
  work.tokens = tokens;
  work.inputs = outputs[0].weight.cols;
  work.accumulate = accumulate;
  for (const ProjectArgs::Output& output : outputs) {
    work.matrices[work.count++] = {output.weight.data, output.y, output.weight.rows, 0};
  }
  LaunchFor<false>(outputs[0].weight.dtype, work, tape);
}

}  // namespace

void LinearFew(const LinearArgs& args, Tape& tape) {
  if (args.tokens == 0 || args.weight.rows == 0) return;
  if (!Fits(args.weight, args.x)) return LaunchPlain(args, tape);
  const ProjectArgs::Output output = {args.weight, args.y};
  ProductsOf(args.x, args.tokens, {&output, 1}, args.accumulate, tape);
}

void ProjectFew(const ProjectArgs& args, Tape& tape) {
  if (args.tokens == 0) return;
  NormFirst(args, tape);
  bool fit = args.outputs.size() <= kMostOutputs;
  for (const ProjectArgs::Output& output : args.outputs) {
    fit = fit && Fits(output.weight, args.normed) &&
          output.weight.dtype == args.outputs[0].weight.dtype;
  }
  if (fit) return ProductsOf(args.normed, args.tokens, args.outputs, false, tape);
  for (const ProjectArgs::Output& output : args.outputs) {
    LinearFew({.x = args.normed, .tokens = args.tokens, .weight = output.weight, .y = output.y},
              tape);
  }
}

void GateUpFew(const GateUpArgs& args, Tape& tape) {
  if (args.tokens == 0) return;
  NormFirst(args, tape);
  if (Fits(args.gate, args.normed) && Fits(args.up, args.normed) &&
      args.gate.dtype == args.up.dtype) {
    Work work{};
    work.x = args.normed;
    work.tokens = args.tokens;
    work.inputs = args.gate.cols;
    work.count = 2;
    work.matrices[0] = {args.gate.data, args.out, args.gate.rows, 0};
    work.matrices[1] = {args.up.data, nullptr, args.up.rows, 0};
    LaunchFor<true>(args.gate.dtype, work, tape);
    return;
  }
  LinearFew({.x = args.normed, .tokens = args.tokens, .weight = args.gate, .y = args.out}, tape);
  LinearFew({.x = args.normed, .tokens = args.tokens, .weight = args.up, .y = args.spare}, tape);
  SwiGlu({.gate = args.out, .up = args.spare, .tokens = args.tokens, .width = args.gate.rows},
         tape);
}

}  // namespace sparsekv::cuda
