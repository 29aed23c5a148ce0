// What tests/gpu/ceilings.cu measures with: checks, owners, the report, the kernels that move rows,
// timing, host threads. A part of that program, which alone includes it.
#pragma once

#include <cuda_runtime.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace ceilings {

using Clock = std::chrono::steady_clock;
using Strings = std::vector<std::string>;

constexpr size_t kKiB = 1024;
constexpr size_t kMiB = kKiB * 1024;
constexpr size_t kGiB = kMiB * 1024;
constexpr int kThreads = 256;           // of a CTA
constexpr double kStartLimit = 55;      // seconds after which no section starts
constexpr double kMeasureLimit = 0.15;  // seconds after which a measurement repeats no more
constexpr size_t kStampBytes = 128;     // every piece of this size starts with its number + 1
constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void Check(cudaError_t result, const char* call) {
  if (result == cudaSuccess) return;
  (void)cudaGetLastError();  // it would be reported again by the next launch
  throw Failure(std::string(call) + ": " + cudaGetErrorName(result));
}
#define CUDA_OK(call) Check((call), #call)

inline void Require(bool holds, const std::string& why) {
  if (!holds) throw Failure(why);
}

template <typename T, cudaError_t (*kDestroy)(T)>
class Owned {
 public:
  Owned() = default;
  Owned(Owned&& other) noexcept : value_(std::exchange(other.value_, T{})) {}
  ~Owned() {
    if (value_) (void)kDestroy(value_);
  }
  T* out() { return &value_; }
  operator T() const { return value_; }

 private:
  T value_{};
};
using Event = Owned<cudaEvent_t, cudaEventDestroy>;
using Stream = Owned<cudaStream_t, cudaStreamDestroy>;
using Graph = Owned<cudaGraph_t, cudaGraphDestroy>;
using GraphExec = Owned<cudaGraphExec_t, cudaGraphExecDestroy>;

struct DeviceMemory : Owned<void*, cudaFree> {
  explicit DeviceMemory(size_t bytes) { CUDA_OK(cudaMalloc(out(), bytes)); }
  template <typename T>
  T* As() const {
    return static_cast<T*>(static_cast<void*>(*this));
  }
};

struct PinnedMemory : Owned<void*, cudaFreeHost> {
  explicit PinnedMemory(size_t bytes) {
    CUDA_OK(cudaHostAlloc(out(), bytes, cudaHostAllocPortable | cudaHostAllocMapped));
  }
};

// A memfd that may be sealed.
struct Memfd {
  explicit Memfd(size_t bytes) : fd(memfd_create("ceilings", MFD_CLOEXEC | MFD_ALLOW_SEALING)) {
    Require(fd >= 0 && ftruncate(fd, static_cast<off_t>(bytes)) == 0, strerror(errno));
  }
  ~Memfd() { close(fd); }
  int fd;
};

struct Mapping {
  Mapping(int fd, size_t size, int protection) : bytes(size) {
    void* at = mmap(nullptr, bytes, protection, MAP_SHARED, fd, 0);
    Require(at != MAP_FAILED, std::string("mmap: ") + strerror(errno));
    data = static_cast<std::byte*>(at);
  }
  ~Mapping() { munmap(data, bytes); }
  std::byte* data;
  size_t bytes;
};

// ---- the report: a table on stdout, the same figures as JSON ----

inline std::string Number(double value, bool json) {
  if (!std::isfinite(value)) return json ? "null" : "-";
  char text[32];
  const char* format = json ? "%.6g" : value < 10 ? "%.3f" : value < 1000 ? "%.1f" : "%.0f";
  snprintf(text, sizeof(text), format, value);
  return text;
}

inline std::string Quoted(const std::string& text) {
  std::string quoted = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return quoted + "\"";
}

inline std::string Braced(const Strings& members) {
  std::string text;
  for (const std::string& member : members) text += (text.empty() ? "" : ", ") + member;
  return "{" + text + "}";
}

struct Grid {
  std::string name, unit, down, across;
  Strings columns;
  std::vector<std::pair<std::string, std::vector<double>>> lines = {};
};

class Report {
 public:
  void Begin(const std::string& section) {
    printf("\n%s\n", section.c_str());
    sections_.emplace_back(section, Strings());
  }
  void Text(const std::string& key, const std::string& value) {
    printf("  %-44s %s\n", key.c_str(), value.c_str());
    Keep(key, Quoted(value));
  }
  void Put(const std::string& key, double value, const std::string& unit,
           const std::string& note = "") {
    printf("  %-44s %10s %-6s %s\n", key.c_str(), Number(value, false).c_str(), unit.c_str(),
           note.c_str());
    Keep(key, Braced({"\"value\": " + Number(value, true), "\"unit\": " + Quoted(unit),
                      "\"note\": " + Quoted(note)}));
  }
  // `print` is false for the tables that nobody reads whole: they are in the JSON.
  void Put(const Grid& grid, bool print = true) {
    if (print) Print(grid);
    Strings lines;
    for (const auto& [name, values] : grid.lines) {
      Strings cells;
      for (size_t i = 0; i < values.size(); ++i) {
        cells.push_back(Quoted(grid.columns[i]) + ": " + Number(values[i], true));
      }
      lines.push_back(Quoted(name) + ": " + Braced(cells));
    }
    Keep(grid.name, Braced({"\"unit\": " + Quoted(grid.unit), "\"down\": " + Quoted(grid.down),
                            "\"across\": " + Quoted(grid.across), "\"cells\": " + Braced(lines)}));
  }
  void Fail(const std::string& section, const std::string& why) {
    printf("%s: failed: %s\n", section.c_str(), why.c_str());
    Keep("failed", Quoted(why));
  }
  bool Write(const std::string& path) const {
    Strings members;
    for (const auto& [name, figures] : sections_) {
      members.push_back(std::string("\n").append(Quoted(name)) + ": " + Braced(figures));
    }
    std::ofstream file(path);
    file << Braced(members) << "\n";
    return static_cast<bool>(file.flush());
  }

 private:
  void Keep(const std::string& key, const std::string& json) {
    sections_.back().second.push_back("\n  " + Quoted(key) + ": " + json);
  }
  static void Print(const Grid& grid) {
    printf("  %s, %s: %s down, %s across\n  %30s", grid.name.c_str(), grid.unit.c_str(),
           grid.down.c_str(), grid.across.c_str(), "");
    for (const std::string& column : grid.columns) printf(" %11s", column.c_str());
    printf("\n");
    for (const auto& [name, values] : grid.lines) {
      printf("  %30s", name.c_str());
      for (double value : values) printf(" %11s", Number(value, false).c_str());
      printf("\n");
    }
  }
  std::vector<std::pair<std::string, Strings>> sections_;
};

// ---- kernels ----

__device__ uint64_t GlobalNanos() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

__global__ void Wait(uint32_t micros) {
  const uint64_t end = GlobalNanos() + uint64_t{micros} * 1000;
  while (GlobalNanos() < end) {
  }
}

// A permutation of [0, 2^bits): each step can be undone. No row is drawn twice, so that no cache
// helps and no two writers share a row.
__host__ __device__ uint32_t Permute(uint32_t i, uint32_t bits) {
  const uint32_t mask = bits == 32 ? ~0u : (1u << bits) - 1;
  for (uint32_t odd : {0x9e3779b1u, 0x85ebca6bu, 0xc2b2ae35u}) {
    i = (i * odd + 0x7f4a7c15u) & mask;
    i ^= i >> ((bits + 1) / 2);
  }
  return i;
}

__global__ void FillPermuted(uint32_t* to, uint32_t count, uint32_t bits) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) to[i] = Permute(i, bits);
}

// Once, from end to end.
__global__ void ReadAll(const uint4* data, size_t count, uint32_t* sink) {
  constexpr int kLoads = 8;
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  uint32_t mixed = 0;
  size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; i + (kLoads - 1) * stride < count; i += kLoads * stride) {
    uint4 held[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) held[k] = __ldcs(data + i + k * stride);
#pragma unroll
    for (int k = 0; k < kLoads; ++k) mixed ^= held[k].x ^ held[k].y ^ held[k].z ^ held[k].w;
  }
  for (; i < count; i += stride) mixed ^= data[i].x;
  if (mixed == 0x9e3779b9u) *sink = mixed;  // the loads must not be optimised away
}

enum class Way { kGather, kScatter, kRead };

// Moves rows; min(32, kRowBytes / 16) lanes share a row, and hold kFlight of them at once.
template <int kRowBytes, int kFlight, Way kWay>
__global__ void __launch_bounds__(kThreads)
    MoveRows(const uint4* from, uint4* to, const uint32_t* index, uint32_t rows) {
  constexpr uint32_t kPieces = kRowBytes / sizeof(uint4);
  constexpr uint32_t kLanes = kPieces < 32 ? kPieces : 32;
  constexpr uint32_t kLoads = kPieces / kLanes;  // of a lane for one row
  const uint32_t lane = threadIdx.x % kLanes;
  const uint32_t groups = gridDim.x * (kThreads / kLanes);
  const uint32_t group = blockIdx.x * (kThreads / kLanes) + threadIdx.x / kLanes;
  uint32_t mixed = 0;
  for (uint32_t first = group; first < rows; first += groups * kFlight) {
    uint32_t drawn[kFlight];
    uint4 held[kFlight][kLoads];
#pragma unroll
    for (uint32_t f = 0; f < kFlight; ++f) {  // all indices first: no load waits for two others
      const uint32_t row = first + f * groups;
      drawn[f] = row < rows ? index[row] : 0;
    }
#pragma unroll
    for (uint32_t f = 0; f < kFlight; ++f) {
      const uint32_t row = first + f * groups;
      const uint4* source = from + size_t{kWay == Way::kScatter ? row : drawn[f]} * kPieces + lane;
#pragma unroll
      for (uint32_t k = 0; k < kLoads; ++k) {
        held[f][k] = row < rows ? __ldcs(source + k * kLanes) : uint4{};
      }
    }
#pragma unroll
    for (uint32_t f = 0; f < kFlight; ++f) {
      const uint32_t row = first + f * groups;
      uint4* target = to + size_t{kWay == Way::kScatter ? drawn[f] : row} * kPieces + lane;
#pragma unroll
      for (uint32_t k = 0; k < kLoads; ++k) {
        const uint4 value = held[f][k];
        if (kWay == Way::kRead) {
          mixed ^= value.x ^ value.y ^ value.z ^ value.w;
        } else if (row < rows) {
          target[k * kLanes] = value;
        }
      }
    }
  }
  if (kWay == Way::kRead && mixed == 0x9e3779b9u) to->x = mixed;
}

using MoveKernel = void (*)(const uint4*, uint4*, const uint32_t*, uint32_t);
using MoveKernels = std::vector<MoveKernel>;  // by index in kFlights
constexpr int kFlights[] = {1, 2, 4, 8};

template <int kRowBytes, Way kWay>
MoveKernels Movers() {
  return {MoveRows<kRowBytes, 1, kWay>, MoveRows<kRowBytes, 2, kWay>, MoveRows<kRowBytes, 4, kWay>,
          MoveRows<kRowBytes, 8, kWay>};
}

// ---- measuring ----

inline double Since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

inline double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Bench {
  Report report;
  Stream stream;
  Event begin, end;
  int sms = 0;
  bool hopper = false;
  int cpus = 1;
  size_t bytes = 8 * kGiB;         // of the segment
  size_t pages_bytes = 16 * kGiB;  // of every kind of memory whose pages are compared
  std::string only;                // the one section besides the machine that runs; empty: all

  // The segment: shared memory in registered chunks, or what CUDA allocated when it took no memfd.
  std::unique_ptr<Memfd> memfd;
  std::unique_ptr<Mapping> mapping;
  std::unique_ptr<PinnedMemory> fallback;
  size_t registered = 0;        // chunks
  std::byte* host = nullptr;    // null until kernels may read it
  std::byte* device = nullptr;  // the same memory for kernels
};

template <typename... P, typename... A>
void Launch(void (*kernel)(P...), int ctas, int threads, cudaStream_t stream, A... args) {
  kernel<<<ctas, threads, 0, stream>>>(args...);
  CUDA_OK(cudaGetLastError());
}

// Wall microseconds of `work`; `after` is outside the time.
template <typename Work, typename After>
double HostMicros(int repeats, Work work, After after) {
  std::vector<double> seen;
  const auto start = Clock::now();
  for (int i = 0; i <= repeats && (i <= 3 || Since(start) < kMeasureLimit); ++i) {
    const auto from = Clock::now();
    work();
    const double micros = Since(from) * 1e6;
    after();
    if (i > 0) seen.push_back(micros);  // the first warms up
  }
  return Median(seen);
}

// Microseconds that the device takes for what `enqueue` puts on the stream. The device is kept
// busy for `head_start` microseconds first, so that the time holds no wait for the host.
template <typename Enqueue>
double GpuMicros(Bench& b, int repeats, Enqueue enqueue, uint32_t head_start = 40) {
  std::vector<double> seen;
  const auto start = Clock::now();
  for (int i = 0; i <= repeats && (i <= 3 || Since(start) < kMeasureLimit); ++i) {
    Launch(Wait, 1, 1, b.stream, head_start);
    CUDA_OK(cudaEventRecord(b.begin, b.stream));
    enqueue();
    CUDA_OK(cudaEventRecord(b.end, b.stream));
    CUDA_OK(cudaStreamSynchronize(b.stream));
    float millis = 0;
    CUDA_OK(cudaEventElapsedTime(&millis, b.begin, b.end));
    if (i > 0) seen.push_back(millis * 1e3);
  }
  return Median(seen);
}

inline double GBps(double bytes, double micros) { return bytes / micros / 1e3; }

// Random rows, other ones at every call: what was read before must not lie in a cache.
class RowIndex {
 public:
  RowIndex(Bench& b, size_t rows)
      : bits_(std::bit_width(rows) - 1),
        count_(std::min(size_t{1} << bits_, 8 * kMiB)),
        index_(count_ * sizeof(uint32_t)) {
    const int ctas = static_cast<int>((count_ + kThreads - 1) / kThreads);
    Launch(FillPermuted, ctas, kThreads, b.stream, index_.As<uint32_t>(),
           static_cast<uint32_t>(count_), bits_);
  }
  const uint32_t* Next(uint32_t rows) {
    if (next_ + rows > count_) next_ = 0;
    last_ = std::exchange(next_, next_ + rows);
    return index_.As<uint32_t>() + last_;
  }
  // Row i of what Next gave last.
  size_t Drawn(uint32_t i) const { return Permute(static_cast<uint32_t>(last_ + i), bits_); }

 private:
  uint32_t bits_;
  size_t count_;
  DeviceMemory index_;
  size_t next_ = 0;
  size_t last_ = 0;
};

struct Move {
  MoveKernels kernels;
  const void* from;
  void* to;
  RowIndex* index;
  uint32_t rows;
  uint32_t row_bytes;

  void Enqueue(Bench& b, int ctas, size_t flight) const {
    Launch(kernels[flight], ctas, kThreads, b.stream, static_cast<const uint4*>(from),
           static_cast<uint4*>(to), static_cast<const uint32_t*>(index->Next(rows)), rows);
  }
};

struct Best {
  double micros = std::numeric_limits<double>::infinity();
  std::string setting;
};

// Every number of CTAs with every number of rows in flight. The table goes to the JSON in `unit`.
inline Best Sweep(Bench& b, const std::string& name, const std::string& unit, const Move& move,
                  const std::vector<int>& ctas, bool print) {
  Grid grid{name, unit, "CTAs", "rows in flight for a group of lanes", {}};
  for (int flight : kFlights) grid.columns.push_back(std::to_string(flight));
  Best best;
  for (int count : ctas) {
    std::vector<double> line;
    for (size_t f = 0; f < std::size(kFlights); ++f) {
      const double micros =
          GpuMicros(b, move.rows > 16384 ? 5 : 15, [&] { move.Enqueue(b, count, f); });
      line.push_back(unit == "us" ? micros : GBps(1.0 * move.rows * move.row_bytes, micros));
      if (micros < best.micros) {
        best = {micros, std::to_string(count) + " CTAs x " + std::to_string(kFlights[f])};
      }
    }
    grid.lines.emplace_back(std::to_string(count), line);
  }
  b.report.Put(grid, print);
  return best;
}

// ---- host threads ----

// Runs work(i) on `count` threads, and returns the seconds until all are done.
inline double InParallel(int count, const std::function<void(int)>& work) {
  const auto start = Clock::now();
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back(work, i);
  for (std::thread& thread : threads) thread.join();
  return Since(start);
}

// Threads that are awake already: to start one takes longer than to gather a few rows.
class Crew {
 public:
  explicit Crew(int threads) : threads_(threads) {
    for (int i = 1; i < threads; ++i) helpers_.emplace_back([this, i] { Help(i); });
  }
  ~Crew() {
    stop_ = true;
    round_.fetch_add(1);
    for (std::thread& helper : helpers_) helper.join();
  }
  void Run(const std::function<void(int)>& work) {
    work_ = &work;
    busy_.store(threads_ - 1);
    round_.fetch_add(1);
    work(0);
    while (busy_.load() != 0) std::this_thread::yield();
  }

 private:
  void Help(int i) {
    for (uint32_t round = 1;; ++round) {
      while (round_.load() != round) std::this_thread::yield();
      if (stop_) return;
      (*work_)(i);
      busy_.fetch_sub(1);
    }
  }
  const int threads_;
  const std::function<void(int)>* work_ = nullptr;
  std::atomic<uint32_t> round_{0};
  std::atomic<int> busy_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> helpers_;
};

}  // namespace ceilings
