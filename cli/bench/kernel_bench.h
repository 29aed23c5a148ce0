#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "cli/bench/bench_labels.h"
#include "cli/bench/ceilings.h"
#include "cli/bench/report.h"
#include "kernels/backend.h"

namespace sparsekv {

// What the cases of `bench kernels` share: the backend, one stretch of memory, far larger than any
// cache, that serves as rows and weights in turn, and to measure the ceilings on, and one of the
// backend's own for labels.
class KernelBench {
 public:
  static constexpr size_t kMemory = size_t{512} << 20;
  static constexpr uint32_t kRowSizes[] = {256, 512, 1024};

  explicit KernelBench(unsigned threads);
  ~KernelBench();
  KernelBench(const KernelBench&) = delete;

  Backend& backend() { return *backend_; }
  cpu::ThreadPool& pool() { return pool_; }
  // kMemory bytes of normal bf16 values each.
  std::byte* memory() { return memory_; }
  std::byte* labels() { return labels_; }

  // The ceilings of this round, in units per second.
  struct Ceilings {
    double stream = 0;                       // bytes
    double rows[std::size(kRowSizes)] = {};  // bytes, in rows of kRowSizes
    double flops = 0;

    double RowRate(size_t row_bytes) const;  // of the nearest size
  };
  Ceilings MeasureCeilings();

 private:
  std::byte* memory_ = nullptr;
  std::byte* labels_ = nullptr;
  std::unique_ptr<Backend> backend_;
  cpu::ThreadPool pool_;
  std::vector<uint64_t> shuffled_[std::size(kRowSizes)];  // every row's offset
  size_t next_[std::size(kRowSizes)] = {};
};

// One case: run(i) does it for the i-th time, on other data than the times before.
struct KernelCase {
  BenchCase item;
  std::function<void(uint32_t i)> run;
  // Seconds that the machine's ceilings allow for one run; may be null.
  std::function<double(const KernelBench::Ceilings&)> ideal;
};

// Each appends its cases whose names contain `filter`.
void AddAttentionCases(KernelBench& bench, const std::string& filter, const BenchLabels& labels,
                       std::vector<KernelCase>* cases);
absl::Status AddLinearCases(KernelBench& bench, const std::string& filter,
                            std::vector<KernelCase>* cases);

// Normal values: [count] float32, the same in every run.
std::vector<float> NormalValues(size_t count, uint32_t seed);

inline double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace sparsekv
