#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/check.h"
#include "cli/bench/report.h"
#include "kernels/backend.h"

namespace sparsekv {

// How operations of a device are timed. The host must not show in the figure: neither what it takes
// to note and start a step, nor when it hears of its end. So an operation's time is
// (step of 2N - step of N) / N, where a step does nothing else.
struct StepTiming {
  double least_step = 0.003;  // seconds that a step of N takes, where N may be so large
  uint32_t rounds = 11;       // of which the median is taken
};
struct TimePerRun {
  double seconds = 0;
  uint32_t runs = 0;  // N
};
// `step(n)` does it n times in one step and returns that step's seconds.
TimePerRun MeasureRuns(const std::function<double(uint32_t n)>& step, uint32_t most_runs,
                       const StepTiming& timing);

// Memory of a device, with what was uploaded to it.
template <typename T>
class DeviceArray {
 public:
  DeviceArray(Backend& backend, size_t count)
      : backend_(backend), data_(reinterpret_cast<T*>(backend.Allocate(count * sizeof(T)))) {
    CHECK(data_ != nullptr);  // DeviceBench leaves much more than cases take
  }
  DeviceArray(Backend& backend, const std::vector<T>& values)
      : DeviceArray(backend, values.size()) {
    backend.Upload(data_, values.data(), values.size() * sizeof(T));
  }
  ~DeviceArray() { backend_.Free(reinterpret_cast<std::byte*>(data_)); }
  DeviceArray(const DeviceArray&) = delete;

  T* data() const { return data_; }

 private:
  Backend& backend_;
  T* const data_;
};

// What the cases share: the device, a large stretch of its memory that serves as rows, labels and
// weights in turn, its ceilings, and how a case is measured. Knows nothing of what kind of device
// it is.
class DeviceBench {
 public:
  struct Options {
    size_t pool_bytes = 40'000'000'000;  // or 60 % of the free memory, if that is less
    size_t cold_bytes = size_t{256}
                        << 20;            // after so many other bytes no cache holds what was read
    size_t copy_bytes = size_t{1} << 30;  // of the ceiling; half the pool at most
    uint32_t product = 8192;              // tokens, inputs and outputs of the ceiling
    StepTiming timing;
    std::string filter;  // cases whose names contain it; empty = all
  };
  // What a case is compared with.
  enum class Limit : uint8_t { kNone, kCopy, kProduct };

  struct Case {
    BenchCase item;  // without its times
    StepKind kind = StepKind::kDecode;
    Limit limit = Limit::kNone;
    uint32_t items = 1;  // that one run gives to operations
    // Does it, i counting from 0 in every step. What operations are given beside their items
    // depends on i alone, so that a device that keeps steps as graphs meets the same step again.
    std::function<void(uint32_t i)> run;
  };

  // RESOURCE_EXHAUSTED where the device has no memory for the pool. Measures the ceilings.
  static absl::StatusOr<std::unique_ptr<DeviceBench>> Make(Backend& backend,
                                                           const Options& options);

  Backend& backend() { return backend_; }
  std::span<std::byte> pool() { return {pool_->data(), pool_bytes_}; }  // random bf16 values
  size_t cold_bytes() const { return options_.cold_bytes; }
  bool Wants(std::string_view name) const {
    return name.find(options_.filter) != std::string_view::npos;
  }

  // At once; adds it to the report unless the filter leaves it out. Null, or the report's case, to
  // which more can be added until the next one comes.
  BenchCase* Measure(const Case& one);
  BenchReport TakeReport();

 private:
  DeviceBench(Backend& backend, const Options& options) : backend_(backend), options_(options) {}

  void FillPool();
  void MeasureCopy();
  void MeasureProduct();
  BenchCase& MeasureAlways(const Case& one);
  double StepSeconds(const Case& one, uint32_t runs);

  Backend& backend_;
  Options options_;
  size_t pool_bytes_ = 0;
  std::unique_ptr<DeviceArray<std::byte>> pool_, flush_;
  double copy_rate_ = 0, product_rate_ = 0;  // bytes and FLOPs per second
  std::vector<BenchCase> cases_;
};

// Normal values on the device; a million different ones.
std::unique_ptr<DeviceArray<float>> NormalsOn(Backend& backend, size_t count);

// 0 .. count-1 in random order, the same in every run.
std::vector<uint32_t> Shuffled(uint32_t count, uint32_t seed);

}  // namespace sparsekv
