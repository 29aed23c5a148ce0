#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cli/bench/ceilings.cc"
#include "cli/bench/ceilings.h"

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <atomic>
#include <chrono>

HWY_BEFORE_NAMESPACE();
namespace sparsekv::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using DU = hn::ScalableTag<uint64_t>;
using VU = hn::Vec<DU>;
constexpr size_t kLine = 64;

// A value that depends on every byte, so that no load can be left out.
uint64_t Read(const std::byte* from, size_t bytes) {
  const DU d;
  VU sums[4] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
  constexpr size_t kVector = HWY_LANES(uint64_t) * sizeof(uint64_t);
  size_t at = 0;
  for (; at + 4 * kVector <= bytes; at += 4 * kVector) {
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) {
      const auto* data = reinterpret_cast<const uint64_t*>(from + at + i * kVector);
      sums[i] = hn::Add(sums[i], hn::LoadU(d, data));
    }
  }
  return hn::GetLane(
      hn::SumOfLanes(d, hn::Add(hn::Add(sums[0], sums[1]), hn::Add(sums[2], sums[3]))));
}

// Some stretches side by side: the hardware's own prefetching follows several streams at once, and
// brings more for them than for one. Prefetching in code brings less: it waits among the few misses
// that a core keeps in flight.
uint64_t Stream(const std::byte* from, size_t bytes) {
  constexpr size_t kStretches = 4;
  constexpr size_t kPiece = 256;
  const size_t stretch = bytes / kStretches / kPiece * kPiece;
  uint64_t sum = 0;
  for (size_t at = 0; at < stretch; at += kPiece) {
    for (size_t i = 0; i < kStretches; ++i) sum += Read(from + i * stretch + at, kPiece);
  }
  return sum;
}

// Some rows are fetched while as many before them are read, line by line side by side: memory
// serves rows that lie apart faster so than one after the other. More rows are slower, as they wait
// among the few misses that a core keeps in flight, and the reads behind them.
uint64_t Rows(const std::byte* memory, const uint64_t* offsets, size_t count, size_t row_bytes) {
  constexpr size_t kGroup = 8;
  uint64_t sum = 0;
  for (size_t first = 0; first + kGroup <= count; first += kGroup) {
    const uint64_t* next = offsets + (first + 2 * kGroup <= count ? first + kGroup : first);
    for (size_t line = 0; line < row_bytes; line += kLine) {
      for (size_t i = 0; i < kGroup; ++i) __builtin_prefetch(memory + next[i] + line, 0, 2);
    }
    for (size_t i = 0; i < kGroup; ++i) sum += Read(memory + offsets[first + i], row_bytes);
  }
  return sum;
}

// Enough chains that none waits for its own last step.
constexpr size_t kChains = 12;

float Fma(size_t steps) {
  const hn::ScalableTag<float> d;
  hn::Vec<decltype(d)> sums[kChains];
#pragma GCC unroll 12
  for (size_t i = 0; i < kChains; ++i) sums[i] = hn::Set(d, static_cast<float>(i));
  const auto factor = hn::Set(d, 0.5f);
  const auto addend = hn::Set(d, 1.0f);
  for (size_t step = 0; step < steps; ++step) {
#pragma GCC unroll 12
    for (size_t i = 0; i < kChains; ++i) sums[i] = hn::MulAdd(sums[i], factor, addend);
  }
  for (size_t i = 1; i < kChains; ++i) sums[0] = hn::Add(sums[0], sums[i]);
  return hn::GetLane(hn::SumOfLanes(d, sums[0]));
}

double FmaFlopsPerStep() { return 2.0 * kChains * HWY_LANES(float); }

}  // namespace
}  // namespace sparsekv::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sparsekv {
namespace {

HWY_EXPORT(Stream);
HWY_EXPORT(Rows);
HWY_EXPORT(Fma);
HWY_EXPORT(FmaFlopsPerStep);

// Calls function(task) for tasks of nearly equal size, and keeps what they return alive.
template <typename Function>
double Timed(cpu::ThreadPool& pool, uint32_t tasks, const Function& function) {
  static std::atomic<uint64_t> sink;
  const auto start = std::chrono::steady_clock::now();
  pool.Run(tasks, [&](uint32_t task, unsigned) {
    sink.fetch_add(static_cast<uint64_t>(function(task)), std::memory_order_relaxed);
  });
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

constexpr uint32_t kTasksPerThread = 16;  // so that a thread that starts late takes fewer

}  // namespace

double StreamRead(cpu::ThreadPool& pool, std::span<const std::byte> memory) {
  const auto stream = HWY_DYNAMIC_DISPATCH(Stream);
  const uint32_t tasks = pool.threads() * kTasksPerThread;
  const size_t part = memory.size() / tasks / 4096 * 4096;
  return Timed(pool, tasks,
               [&](uint32_t task) { return stream(memory.data() + task * part, part); });
}

double ReadRows(cpu::ThreadPool& pool, const std::byte* memory, std::span<const uint64_t> offsets,
                size_t row_bytes) {
  const auto rows = HWY_DYNAMIC_DISPATCH(Rows);
  const uint32_t tasks = pool.threads() * kTasksPerThread;
  return Timed(pool, tasks, [&](uint32_t task) {
    const size_t begin = offsets.size() * task / tasks;
    const size_t end = offsets.size() * (task + 1) / tasks;
    return rows(memory, offsets.data() + begin, end - begin, row_bytes);
  });
}

FmaRun MultiplyAdd(cpu::ThreadPool& pool) {
  constexpr size_t kSteps = 20000;
  const auto fma = HWY_DYNAMIC_DISPATCH(Fma);
  const uint32_t tasks = pool.threads() * kTasksPerThread;
  FmaRun run;
  run.flops = HWY_DYNAMIC_DISPATCH(FmaFlopsPerStep)() * kSteps * tasks;
  run.seconds = Timed(pool, tasks, [&](uint32_t) { return fma(kSteps); });
  return run;
}

}  // namespace sparsekv
#endif  // HWY_ONCE
