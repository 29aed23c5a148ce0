#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "base/check.h"
#include "base/limits.h"
#include "kernels/cuda/begin_kernel.cuh"
#include "kernels/cuda/cta.cuh"
#include "kernels/cuda/operations.h"

// Sampling: a CTA per sequence. Probabilities are summed as integers of 2^-43 of the highest
// token's, so that a sum has one value in whatever order it is made; what top_k and top_p leave is
// everything from one token on, in the order (logit, then lower id), which is found by radix select
// over counts or over such sums.
namespace sparsekv::cuda {
namespace {

constexpr uint32_t kThreads = 1024;
constexpr uint32_t kWarps = kThreads / kWarpThreads;
constexpr uint32_t kBatch = 8;  // loads of a thread that do not wait for each other
constexpr uint32_t kBinBits = 11;
constexpr uint32_t kBins = 1 << kBinBits;
constexpr uint32_t kBinsEach = kBins / kThreads;
constexpr uint32_t kSorted = kThreads;  // tokens that are sorted rather than divided further
constexpr uint32_t kIdBits = 20;
static_assert(kMaxVocab <= 1u << kIdBits);
constexpr int kMassBits = 43;
static_assert(kMassBits + kIdBits < 64);

struct Task {
  const float* logits;
  double uniform;
  uint32_t vocab;
  float scale;  // log2(e) / temperature; 0 = greedy
  float top_p;
  uint32_t top_k;  // 0 = all
  uint32_t top;    // logprobs wanted, <= vocab
};

struct Drawn {
  uint32_t id;
  float logprob;
  uint32_t top_ids[kMaxTopLogprobs];
  float top_logprobs[kMaxTopLogprobs];
};

struct Board {
  uint32_t counts[kBins];
  uint32_t mass_low[kBins], mass_high[kBins];
  uint64_t sorted[kSorted];
  uint64_t totals[kWarps];
  double double_totals[kWarps];
  uint64_t before;  // mass or tokens before what was chosen last
  uint64_t cut;
  uint32_t chosen;
  uint32_t collected;
};

__device__ float Usable(float logit) { return fmaxf(logit, -INFINITY); }  // NaN to -infinity

// A token's rank as a number: higher logits are higher, then lower ids.
__device__ uint64_t RankOf(float logit, uint32_t id) {
  const uint32_t bits = __float_as_uint(logit + 0.0f);  // -0 + 0 = +0
  const uint32_t key = bits >> 31 ? ~bits : bits | 0x80000000;
  return uint64_t{key} << kIdBits | ((1u << kIdBits) - 1 - id);
}
__device__ uint32_t IdOf(uint64_t rank) {
  return (1u << kIdBits) - 1 - (static_cast<uint32_t>(rank) & ((1u << kIdBits) - 1));
}
__device__ float LogitOf(uint64_t rank) {
  const auto key = static_cast<uint32_t>(rank >> kIdBits);
  return __uint_as_float(key >> 31 ? key & 0x7FFFFFFF : ~key);
}

// 2^((logit - highest) * scale), in [0, 1]; the highest weigh 1 even where they are infinite.
__device__ float Weight(float logit, float highest, float scale) {
  return logit == highest ? 1.0f : __saturatef(exp2f((logit - highest) * scale));
}

// In units of 2^-kMassBits, cut off.
__device__ uint64_t Mass(float weight) {
  const uint32_t bits = __float_as_uint(weight);
  const uint64_t mantissa = (bits & 0x7FFFFF) | 0x800000;  // in units of 2^(bits >> 23) - 150
  const int shift = static_cast<int>(bits >> 23) - 150 + kMassBits;
  return shift >= 0 ? mantissa << shift : shift > -24 ? mantissa >> -shift : 0;
}

// Tokens [begin, end) of a range, divided over the warps in whole rounds.
struct Range {
  uint32_t begin, end;
  __device__ uint32_t per_warp() const {
    return (end - begin + kThreads - 1) / kThreads * kWarpThreads;
  }
  __device__ Range OfWarp(uint32_t warp) const {
    const uint32_t first = min(end, begin + warp * per_warp());
    return {first, min(end, first + per_warp())};
  }
};

// Calls f(id, logit) for every token of the range, the warp's share in ascending order per lane.
template <typename F>
__device__ void ForEach(const Task& task, Range range, const F& f) {
  const Range mine = range.OfWarp(WarpId());
  for (uint32_t first = mine.begin + LaneId(); first < mine.end; first += kBatch * kWarpThreads) {
    float logits[kBatch];
#pragma unroll
    for (uint32_t b = 0; b < kBatch; ++b) {
      const uint32_t id = first + b * kWarpThreads;
      logits[b] = id < mine.end ? task.logits[id] : 0.0f;
    }
#pragma unroll
    for (uint32_t b = 0; b < kBatch; ++b) {
      const uint32_t id = first + b * kWarpThreads;
      if (id < mine.end) f(id, Usable(logits[b]));
    }
  }
}

// The highest rank of all.
__device__ uint64_t FindBest(const Task& task, Board& board) {
  float highest = -INFINITY;
  uint32_t at = kNoToken;
  ForEach(task, {0, task.vocab}, [&](uint32_t id, float logit) {
    if (logit > highest || at == kNoToken) {
      highest = logit;
      at = id;
    }
  });
  uint64_t best = at == kNoToken ? 0 : RankOf(highest, at);
#pragma unroll
  for (uint32_t step = kWarpThreads / 2; step > 0; step /= 2) {
    best = max(best, __shfl_xor_sync(kWholeWarp, best, step));
  }
  if (LaneId() == 0) board.totals[WarpId()] = best;
  __syncthreads();
  for (uint32_t warp = 0; warp < kWarps; ++warp) best = max(best, board.totals[warp]);
  return best;
}

// What a token counts when ranks are cut: 1, or the mass at the request's temperature.
struct Metric {
  bool by_mass;
  float highest, scale;
  __device__ uint64_t operator()(float logit) const {
    return by_mass ? Mass(Weight(logit, highest, scale)) : 1;
  }
};

// Ranks low .. high: of tokens in question.
struct Ranks {
  uint64_t low, high;
  __device__ bool Hold(uint64_t rank) const { return rank >= low && rank <= high; }
};

// Counts and sums of the metric over the tokens in `ranks`, by (rank - low) >> shift.
__device__ void FillBins(const Task& task, const Metric& metric, Ranks ranks, uint32_t shift,
                         Board& board) {
  for (uint32_t bin = threadIdx.x; bin < kBins; bin += kThreads) {
    board.counts[bin] = board.mass_low[bin] = board.mass_high[bin] = 0;
  }
  __syncthreads();
  ForEach(task, {0, task.vocab}, [&](uint32_t id, float logit) {
    const uint64_t rank = RankOf(logit, id);
    if (!ranks.Hold(rank)) return;
    const auto bin = static_cast<uint32_t>((rank - ranks.low) >> shift);
    atomicAdd(&board.counts[bin], 1);
    // Shared memory adds 32 bits at once: whoever makes the lower half wrap carries.
    const uint64_t mass = metric(logit);
    const auto low = static_cast<uint32_t>(mass);
    const uint32_t carry = low > 0 && atomicAdd(&board.mass_low[bin], low) + low < low;
    const uint32_t high = static_cast<uint32_t>(mass >> 32) + carry;
    if (high > 0) atomicAdd(&board.mass_high[bin], high);
  });
  __syncthreads();
}

// The bin, from the highest down, where the sum reaches `need`: board.chosen and board.before.
__device__ void ChooseBin(uint64_t need, Board& board) {
  const auto bin_of = [](uint32_t i) { return kBins - 1 - (threadIdx.x * kBinsEach + i); };
  const auto mass_of = [&](uint32_t bin) {
    return uint64_t{board.mass_high[bin]} << 32 | board.mass_low[bin];
  };
  uint64_t of_thread = 0;
  for (uint32_t i = 0; i < kBinsEach; ++i) of_thread += mass_of(bin_of(i));
  uint64_t before = RunningSum(of_thread, board.totals).before;
  for (uint32_t i = 0; i < kBinsEach; ++i) {
    const uint64_t mass = mass_of(bin_of(i));
    if (before < need && need <= before + mass) {
      board.chosen = bin_of(i);
      board.before = before;
    }
    before += mass;
  }
  __syncthreads();
}

// The tokens in `ranks`, `count` <= kSorted of them, into board.sorted, best first.
__device__ void Sort(const Task& task, Ranks ranks, uint32_t count, Board& board) {
  if (threadIdx.x == 0) board.collected = 0;
  board.sorted[threadIdx.x] = 0;  // below every rank
  __syncthreads();
  ForEach(task, {0, task.vocab}, [&](uint32_t id, float logit) {
    const uint64_t rank = RankOf(logit, id);
    if (ranks.Hold(rank)) board.sorted[atomicAdd(&board.collected, 1) % kSorted] = rank;
  });
  __syncthreads();
  for (uint32_t size = 2; size < 2 * count; size *= 2) {  // bitonic
    for (uint32_t step = size / 2; step > 0; step /= 2) {
      const uint32_t other = threadIdx.x ^ step;
      if (other > threadIdx.x) {
        const uint64_t a = board.sorted[threadIdx.x], b = board.sorted[other];
        if ((a < b) == ((threadIdx.x & size) == 0)) {
          board.sorted[threadIdx.x] = b;
          board.sorted[other] = a;
        }
      }
      __syncthreads();
    }
  }
}

// The rank of the token with which the sum, from the best down, reaches `need`. REQUIRES: `count`
// tokens are in `ranks`, and together they reach it.
__device__ uint64_t FindCut(const Task& task, const Metric& metric, Ranks ranks, uint32_t count,
                            uint64_t need, Board& board) {
  while (count > kSorted) {
    const int bits = 64 - __clzll(static_cast<long long>(ranks.high - ranks.low));
    const uint32_t shift = max(bits, static_cast<int>(kBinBits)) - kBinBits;
    FillBins(task, metric, ranks, shift, board);
    ChooseBin(need, board);
    need -= board.before;
    count = board.counts[board.chosen];
    ranks.low += uint64_t{board.chosen} << shift;
    ranks.high = min(ranks.high, ranks.low + ((uint64_t{1} << shift) - 1));
    __syncthreads();
  }
  Sort(task, ranks, count, board);
  const uint64_t rank = board.sorted[threadIdx.x];
  const uint64_t value = threadIdx.x < count ? metric(LogitOf(rank)) : 0;
  const uint64_t before = RunningSum(value, board.totals).before;
  if (before < need && need <= before + value) board.cut = rank;
  __syncthreads();
  return board.cut;
}

// Of the tokens from rank `cut` up, in the warps' shares of `range`.
__device__ Running<uint64_t> SumMass(const Task& task, const Metric& metric, uint64_t cut,
                                     Range range, Board& board) {
  uint64_t mass = 0;
  ForEach(task, range, [&](uint32_t id, float logit) {
    if (cut == 0 || RankOf(logit, id) >= cut) mass += metric(logit);
  });
  return RunningSumOfWarps(WarpSum(mass), board.totals);
}

// The first token, by id, with which the mass of those from rank `cut` up reaches `need`. `sum` is
// SumMass's of the whole vocabulary, just made: board.totals holds the warps' own. Each round
// leaves one warp's share.
__device__ uint32_t Draw(const Task& task, const Metric& metric, uint64_t cut, uint64_t need,
                         Running<uint64_t> sum, Board& board) {
  Range range{0, task.vocab};
  for (;;) {
    const uint64_t mine = board.totals[WarpId()];
    if (LaneId() == 0 && sum.before < need && need <= sum.before + mine) {
      board.chosen = WarpId();
      board.before = sum.before;
    }
    __syncthreads();
    need -= board.before;
    range = range.OfWarp(board.chosen);
    if (range.end - range.begin <= kWarpThreads) break;
    sum = SumMass(task, metric, cut, range, board);
  }
  const uint32_t id = range.begin + LaneId();
  uint64_t mass = 0;
  if (id < range.end) {
    const float logit = Usable(task.logits[id]);
    if (RankOf(logit, id) >= cut) mass = metric(logit);
  }
  const uint32_t reached = __ballot_sync(kWholeWarp, WarpRunningSum(mass) >= need);
  return range.begin + __ffs(static_cast<int>(reached)) - 1;
}

// The sum of the softmax's weights at temperature 1. Every thread's and the threads' together are
// summed in one order.
__device__ double TotalWeight(const Task& task, float highest, Board& board) {
  constexpr float kLog2E = 1.44269504f;
  float total = 0;
  ForEach(task, {0, task.vocab},
          [&](uint32_t, float logit) { total += Weight(logit, highest, kLog2E); });
  return RunningSumOfWarps(WarpSum(static_cast<double>(total)), board.double_totals).all;
}

__device__ uint32_t DrawByTemperature(const Task& task, uint64_t best, Board& board) {
  const Metric by_mass{true, LogitOf(best), task.scale}, by_count{};
  uint64_t cut = 0;
  uint32_t count = task.vocab;
  if (task.top_k != 0 && task.top_k < task.vocab) {
    cut = FindCut(task, by_count, {0, best}, count, task.top_k, board);
    count = task.top_k;
  }
  Running<uint64_t> sum = SumMass(task, by_mass, cut, {0, task.vocab}, board);
  if (task.top_p < 1.0f) {
    const double target = ceil(static_cast<double>(task.top_p) * static_cast<double>(sum.all));
    const auto need = static_cast<uint64_t>(fmax(target, 1.0));
    cut = FindCut(task, by_mass, {cut, best}, count, need, board);
    sum = SumMass(task, by_mass, cut, {0, task.vocab}, board);
  }
  const auto target = static_cast<uint64_t>(task.uniform * static_cast<double>(sum.all));
  return Draw(task, by_mass, cut, min(target + 1, sum.all), sum, board);
}

// Bytes: 4 per token and pass over the vocabulary, from L2. Greedy makes 2 passes, temperature
// alone 3, top_p 6 and top_k 5 (8 together), top_logprobs 3 more; each further division of a bin
// one more. Some 10 to 30 instructions per token and pass.
__global__ void __launch_bounds__(kThreads) SampleKernel(const Task* tasks, Drawn* drawn) {
  BeginKernel();
  __shared__ Board board;
  const Task task = tasks[blockIdx.x];
  Drawn& out = drawn[blockIdx.x];
  const uint64_t best = FindBest(task, board);
  const float highest = LogitOf(best);
  const double total = TotalWeight(task, highest, board);
  const auto logprob = [&](float logit) {
    const double below = logit == highest ? 0.0 : static_cast<double>(logit) - highest;
    return static_cast<float>(below - log(total));
  };
  const uint32_t id = task.scale > 0 ? DrawByTemperature(task, best, board) : IdOf(best);
  if (threadIdx.x == 0) {
    out.id = id;
    out.logprob = logprob(Usable(task.logits[id]));
  }
  if (task.top == 0) return;
  const uint64_t last = FindCut(task, Metric{}, {0, best}, task.vocab, task.top, board);
  Sort(task, {last, best}, task.top, board);
  if (threadIdx.x < task.top) {
    const uint64_t rank = board.sorted[threadIdx.x];
    out.top_ids[threadIdx.x] = IdOf(rank);
    out.top_logprobs[threadIdx.x] = logprob(LogitOf(rank));
  }
}

Task TaskOf(const SampleArgs& args) {
  constexpr double kLog2E = 1.4426950408889634;
  CHECK_LT(0u, args.vocab);
  CHECK_LE(args.vocab, kMaxVocab);
  CHECK_LE(args.top_logprobs, kMaxTopLogprobs);
  const SampleParams& params = args.params;
  return {.logits = args.logits,
          .uniform = UniformFor(params.seed, args.position),
          .vocab = args.vocab,
          .scale = params.temperature > 0 ? static_cast<float>(kLog2E / params.temperature) : 0.0f,
          .top_p = params.top_p,
          .top_k = params.top_k,
          .top = std::min(args.top_logprobs, args.vocab)};
}

}  // namespace

struct Sampler::Pending {
  std::vector<Drawn> drawn;
  std::vector<uint32_t> top;
  SampledToken* tokens = nullptr;
};

Sampler::Sampler() = default;
Sampler::~Sampler() = default;

void Sampler::Note(std::span<const SampleArgs> args, SampledToken* tokens, Tape& tape) {
  if (args.empty()) return;
  Pending& pending = *pending_.emplace_back(std::make_unique<Pending>());
  pending.tokens = tokens;
  pending.drawn.resize(args.size());
  std::vector<Task> tasks;
  for (const SampleArgs& one : args) {
    tasks.push_back(TaskOf(one));
    pending.top.push_back(tasks.back().top);
  }
  const size_t bytes = args.size() * sizeof(Drawn);
  auto* drawn = reinterpret_cast<Drawn*>(tape.Scratch(bytes));
  tape.Launch(SampleKernel, dim3(static_cast<uint32_t>(args.size())), dim3(kThreads), 0,
              tape.Params(tasks), drawn);
  // On the same lane, so before anything else is given the scratch memory.
  tape.Fetch(pending.drawn.data(), drawn, bytes);
}

void Sampler::Take() {
  for (const std::unique_ptr<Pending>& pending : pending_) {
    for (size_t i = 0; i < pending->drawn.size(); ++i) {
      const Drawn& drawn = pending->drawn[i];
      SampledToken& token = pending->tokens[i];
      token = {.id = drawn.id, .logprob = drawn.logprob, .top = {}};
      for (uint32_t t = 0; t < pending->top[i]; ++t) {
        token.top.emplace_back(drawn.top_ids[t], drawn.top_logprobs[t]);
      }
    }
  }
  pending_.clear();
}

}  // namespace sparsekv::cuda
