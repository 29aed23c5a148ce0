#include <algorithm>

#include "base/check.h"
#include "kernels/cuda/begin_kernel.cuh"
#include "kernels/cuda/linear_few_kernel.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/tables.cuh"

// Products of a decode step: few tokens, so the weights' bytes are the bound (2 per weight of 16
// bits, each read once from device memory; x comes from the caches). The kernel is of
// linear_few_kernel.cuh; up to 8 tokens are made operands by every CTA for itself, more by a kernel
// before, once.
namespace sparsekv::cuda {
namespace {

using few::kMostOutputs;
using few::kTileTokens;
using few::Work;

constexpr uint32_t kPlainWarps = 8;

// Any type, any alignment: a warp per output, its lanes' sums added at the end.
template <typename T>
__global__ void PlainKernel(const float* x, const T* weight, float* y, uint32_t tokens,
                            uint32_t inputs, uint32_t outputs, bool accumulate) {
  BeginKernel();
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t output = blockIdx.x * kPlainWarps + threadIdx.x / 32;
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
                dim3((args.weight.rows + kPlainWarps - 1) / kPlainWarps,
                     (args.tokens + kTileTokens - 1) / kTileTokens),
                kPlainWarps * 32, 0, args.x, static_cast<const T*>(args.weight.data), args.y,
                args.tokens, args.weight.cols, args.weight.rows, args.accumulate);
  });
}

bool Fits(const WeightView& weight, const float* x) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  return weight.dtype != DType::kF32 && weight.cols % 8 == 0 && aligned(weight.data) && aligned(x);
}

// CTAs of so many rows, one matrix after the other; of GateUp they have both.
uint32_t PlaceCtas(Work* work, bool gate_up, uint32_t rows) {
  if (gate_up) rows /= 2;
  uint32_t ctas = 0;
  for (uint32_t i = 0; i < work->count; ++i) {
    work->matrices[i].first_cta = gate_up ? 0 : ctas;
    const uint32_t here = (work->matrices[i].rows + rows - 1) / rows;
    ctas = gate_up ? here : ctas + here;
  }
  return ctas;
}

template <bool kGateUp, typename T, typename S>
void LaunchShape(Work work, Tape& tape) {
  const uint32_t ctas = PlaceCtas(&work, kGateUp, S::kRows);
  tape.Launch(few::MmaKernel<T, kGateUp, S>, ctas, S::kThreads, S::kSharedBytes, work);
}

// x as operands, in scratch.
template <typename T, int kTokenTiles>
const uint4* SplitInputs(const Work& work, Tape& tape) {
  constexpr uint32_t kLine = few::kChunk * few::kLineChunks;
  const uint32_t chunks = (work.inputs + kLine - 1) / kLine * few::kLineChunks;
  const uint32_t count = chunks * kTokenTiles * 32;
  auto* to = reinterpret_cast<uint4*>(tape.Scratch(size_t{count} * 2 * sizeof(uint4)));
  tape.Launch(few::SplitKernel<T>, (count + 255) / 256, 256, 0, work.x, work.tokens, work.inputs,
              chunks, kTokenTiles, to);
  return to;
}

// One CTA on a multiprocessor with many stages; where there is less shared memory, fewer.
template <bool kGateUp, typename T, int kTokenTiles, uint32_t kStages>
void LaunchSplit(Work work, Tape& tape) {
  using Large = few::Shape<kTokenTiles, kStages>;
  work.operands = SplitInputs<T, kTokenTiles>(work, tape);
  if (Large::kSharedBytes <= tape.most_shared_bytes()) {
    LaunchShape<kGateUp, T, Large>(work, tape);
  } else {
    LaunchShape<kGateUp, T, few::Shape<kTokenTiles, kStages / 2>>(work, tape);
  }
}

// Tokens in parts of at most 32.
template <bool kGateUp, typename T>
void LaunchMma(Work work, Tape& tape) {
  constexpr uint32_t kMost = 4 * kTileTokens;
  const Work all = work;
  for (uint32_t from = 0; from < all.tokens; from += kMost) {
    work.tokens = std::min(all.tokens - from, kMost);
    work.x = all.x + size_t{from} * work.inputs;
    for (uint32_t i = 0; i < work.count; ++i) {
      if (float* y = all.matrices[i].y) {
        work.matrices[i].y = y + size_t{from} * work.matrices[i].rows;
      }
    }
    if (work.tokens <= kTileTokens) {
      LaunchShape<kGateUp, T, few::Shape<1, 4>>(work, tape);
    } else if (work.tokens <= 2 * kTileTokens) {
      LaunchSplit<kGateUp, T, 2, 6>(work, tape);
    } else {
      LaunchSplit<kGateUp, T, 4, 4>(work, tape);
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
