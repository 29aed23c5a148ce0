#include "cli/bench/kernel_bench.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "base/check.h"
#include "kernels/half.h"

namespace sparsekv {
namespace {

// Bytes that one measurement of the rate of random rows reads: some milliseconds.
constexpr size_t kRowSample = size_t{32} << 20;

// Fills the memory with normal bf16 values, drawn from a table by a small generator (splitmix64).
void FillNormal(std::byte* memory, size_t bytes, cpu::ThreadPool& pool) {
  std::vector<uint16_t> table(1 << 16);
  const std::vector<float> values = NormalValues(table.size(), 1);
  std::transform(values.begin(), values.end(), table.begin(), ToBf16);
  constexpr size_t kPart = size_t{1} << 20;
  pool.Run(static_cast<uint32_t>(bytes / kPart), [&](uint32_t part, unsigned) {
    uint64_t state = uint64_t{part} << 32;
    for (size_t at = part * kPart; at < (part + 1) * kPart; at += 8) {
      uint64_t z = state += 0x9E3779B97F4A7C15u;
      z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
      z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
      const uint16_t four[4] = {table[z & 0xFFFF], table[(z >> 16) & 0xFFFF],
                                table[(z >> 32) & 0xFFFF], table[z >> 48]};
      std::memcpy(memory + at, four, 8);
    }
  });
}

}  // namespace

std::vector<float> NormalValues(size_t count, uint32_t seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(engine);
  return values;
}

KernelBench::KernelBench(unsigned threads) : backend_(MakeCpuBackend(threads)), pool_(threads) {
  // Pages of 4 KiB like those of the KV segment and of mapped checkpoints.
  void* mapped = mmap(nullptr, kMemory, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(mapped != MAP_FAILED);
  memory_ = static_cast<std::byte*>(mapped);
  FillNormal(memory_, kMemory, pool_);
  // Huge pages where the system gives them, as labels lie in a server.
  labels_ = backend_->Allocate(kMemory);
  CHECK(labels_ != nullptr);
  FillNormal(labels_, kMemory, pool_);
  std::mt19937 engine(2);
  for (size_t i = 0; i < std::size(kRowSizes); ++i) {
    shuffled_[i].resize(kMemory / kRowSizes[i]);
    for (size_t row = 0; row < shuffled_[i].size(); ++row) shuffled_[i][row] = row * kRowSizes[i];
    std::shuffle(shuffled_[i].begin(), shuffled_[i].end(), engine);
  }
}

KernelBench::~KernelBench() {
  backend_->Free(labels_);
  munmap(memory_, kMemory);
}

double KernelBench::Ceilings::RowRate(size_t row_bytes) const {
  size_t nearest = 0;
  while (nearest + 1 < std::size(kRowSizes) && kRowSizes[nearest] < row_bytes) ++nearest;
  return rows[nearest];
}

KernelBench::Ceilings KernelBench::MeasureCeilings() {
  Ceilings ceilings;
  ceilings.stream = kMemory / StreamRead(pool_, {memory_, kMemory});
  for (size_t i = 0; i < std::size(kRowSizes); ++i) {
    const size_t count = kRowSample / kRowSizes[i];
    const std::span offsets = std::span(shuffled_[i]).subspan(next_[i], count);
    next_[i] = (next_[i] + count) % shuffled_[i].size();
    ceilings.rows[i] = kRowSample / ReadRows(pool_, memory_, offsets, kRowSizes[i]);
  }
  const FmaRun fma = MultiplyAdd(pool_);
  ceilings.flops = fma.flops / fma.seconds;
  return ceilings;
}

}  // namespace sparsekv
