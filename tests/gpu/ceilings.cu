// Measures, on one GPU, the ceilings that decide how token rows are fetched: the device's own
// bandwidth, registration of a memfd, pinned copies, rows read and written through mapped host
// memory, rows gathered by host threads, graph launch, and a round trip through mapped memory.
//
//   nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -cudart static
//        -o ceilings tests/gpu/ceilings.cu
//   ./ceilings [--json FILE] [--gib N] [--only SECTION]   N: size of the segment, a power of two,
//   default 8
//
// One translation unit with three headers beside it, and nothing else of the project: it can travel
// to a borrowed GPU alone. Figures are medians; GB is 10^9 bytes. A section that fails says so in
// one line and the next one runs; the exit status is then 1.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "ceilings_beside.cuh"
#include "ceilings_graphs.cuh"
#include "ceilings_measure.cuh"
#include "ceilings_pages.cuh"

namespace ceilings {
namespace {

// ---- kernels of one section ----

// Answers every number that appears in `ping` in `pong`; gives up after two seconds.
__global__ void Answer(const uint32_t* ping, uint32_t* pong, uint32_t rounds) {
  const uint64_t deadline = GlobalNanos() + 2'000'000'000;
  for (uint32_t round = 1; round <= rounds; ++round) {
    uint32_t seen = 0;
    for (uint32_t polls = 1; seen != round; ++polls) {
      asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(seen) : "l"(ping) : "memory");
      if (polls % 256 == 0 && GlobalNanos() > deadline) return;
    }
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(pong), "r"(round) : "memory");
  }
}

// ---- sections ----

std::string FirstLine(const std::string& path, const std::string& prefix = "") {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    if (line.starts_with(prefix)) return line;
  }
  return "not readable";
}

void Machine(Bench& b) {
  cudaDeviceProp prop{};
  CUDA_OK(cudaGetDeviceProperties(&prop, 0));
  const auto attribute = [](cudaDeviceAttr what) {
    int value = 0;
    CUDA_OK(cudaDeviceGetAttribute(&value, what, 0));
    return value;
  };
  b.sms = prop.multiProcessorCount;
  b.hopper = prop.major >= 9;
  CUDA_OK(cudaStreamCreateWithFlags(b.stream.out(), cudaStreamNonBlocking));
  CUDA_OK(cudaEventCreate(b.begin.out()));
  CUDA_OK(cudaEventCreate(b.end.out()));
  int driver = 0, runtime = 0;
  CUDA_OK(cudaDriverGetVersion(&driver));
  CUDA_OK(cudaRuntimeGetVersion(&runtime));
  char bus[32] = "";
  CUDA_OK(cudaDeviceGetPCIBusId(bus, sizeof(bus), 0));
  std::string sysfs = std::string("/sys/bus/pci/devices/") + bus + "/";
  std::transform(sysfs.begin(), sysfs.end(), sysfs.begin(), ::tolower);
  utsname kernel{};
  uname(&kernel);
  Report& r = b.report;
  r.Text("gpu", prop.name);
  r.Text("compute capability", std::to_string(prop.major) + "." + std::to_string(prop.minor));
  r.Text("driver", FirstLine("/proc/driver/nvidia/version"));
  r.Put("cuda of the driver", driver, "");
  r.Put("cuda runtime", runtime, "");
  r.Put("SMs", prop.multiProcessorCount, "");
  r.Put("SM clock, highest", attribute(cudaDevAttrClockRate) / 1e3, "MHz");
  r.Put("device memory", double(prop.totalGlobalMem) / kGiB, "GiB");
  r.Put("device memory, clock x width",
        2e3 * attribute(cudaDevAttrMemoryClockRate) * prop.memoryBusWidth / 8 / 1e9, "GB/s");
  r.Put("L2", double(prop.l2CacheSize) / kMiB, "MiB");
  r.Put("copy engines", prop.asyncEngineCount, "");
  r.Text("PCI", std::string(bus) + ", " + FirstLine(sysfs + "current_link_speed") + " x" +
                    FirstLine(sysfs + "current_link_width"));
  r.Text("host", FirstLine("/proc/cpuinfo", "model name"));
  r.Put("host cpus", b.cpus, "");
  r.Text("host memory", FirstLine("/proc/meminfo", "MemTotal"));
  r.Text("huge pages of shared memory",
         FirstLine("/sys/kernel/mm/transparent_hugepage/shmem_enabled"));
  r.Text("kernel", kernel.release);
}

void DeviceCopy(Bench& b) {
  constexpr size_t kBytes = 4 * kGiB;
  DeviceMemory from(kBytes), to(kBytes);
  Launch(FillPermuted, kBytes / 4 / kThreads, kThreads, b.stream, from.As<uint32_t>(),
         uint32_t{kBytes / 4}, uint32_t{30});
  double micros = GpuMicros(b, 7, [&] {
    CUDA_OK(cudaMemcpyAsync(to, from, kBytes, cudaMemcpyDeviceToDevice, b.stream));
  });
  b.report.Put("copy of 4 GiB", GBps(2.0 * kBytes, micros), "GB/s", "read + written");
  Best best;
  for (int per_sm : {2, 4, 8, 16}) {
    micros = GpuMicros(b, 7, [&] {
      Launch(ReadAll, b.sms * per_sm, kThreads, b.stream, from.As<const uint4>(), kBytes / 16,
             to.As<uint32_t>());
    });
    if (micros < best.micros) best = {micros, std::to_string(b.sms * per_sm) + " CTAs"};
  }
  b.report.Put("read of 4 GiB", GBps(kBytes, best.micros), "GB/s", best.setting);
  RowIndex index(b, kBytes / 512);
  for (uint32_t rows : {2048u * 8, 1u << 20}) {
    const std::vector<int> ctas = {b.sms, b.sms * 4, b.sms * 8, static_cast<int>(rows / 8)};
    const std::string name = "512 B rows from 4 GiB, " + std::to_string(rows);
    Move move{Movers<512, Way::kRead>(), from, to, &index, rows, 512};
    best = Sweep(b, name + ", read, by setting", "GB/s", move, ctas, false);
    b.report.Put(name + ", read", GBps(512.0 * rows, best.micros), "GB/s", best.setting);
    move.kernels = Movers<512, Way::kGather>();
    best = Sweep(b, name + ", copied, by setting", "GB/s", move, ctas, false);
    b.report.Put(name + ", copied", GBps(512.0 * rows, best.micros), "GB/s",
                 best.setting + "; counts bytes read, as many are written");
  }
}

void Stamp(std::byte* data, size_t bytes, int threads) {
  const size_t pieces = bytes / kStampBytes;
  InParallel(threads, [&](int i) {
    for (uint64_t p = pieces * i / threads; p < pieces * (i + 1) / threads; ++p) {
      const uint64_t stamp = p + 1;
      memcpy(data + p * kStampBytes, &stamp, sizeof(stamp));
    }
  });
}

std::string Outcome(cudaError_t result) {
  (void)cudaGetLastError();
  return result == cudaSuccess ? "ok" : cudaGetErrorName(result);
}

constexpr unsigned kMapped = cudaHostRegisterMapped | cudaHostRegisterPortable;

// What else the segment's owner does to a memfd, and whether CUDA takes it then.
void RegisterVariants(Bench& b) {
  constexpr size_t kBytes = 64 * kMiB;
  int read_only = 0, same_pointer = 0, pageable = 0;
  CUDA_OK(cudaDeviceGetAttribute(&read_only, cudaDevAttrHostRegisterReadOnlySupported, 0));
  CUDA_OK(cudaDeviceGetAttribute(&same_pointer, cudaDevAttrCanUseHostPointerForRegisteredMem, 0));
  CUDA_OK(cudaDeviceGetAttribute(&pageable, cudaDevAttrPageableMemoryAccess, 0));
  b.report.Put("attribute: read-only registration", read_only, "");
  b.report.Put("attribute: host pointer works on device", same_pointer, "");
  b.report.Put("attribute: pageable memory access", pageable, "");
  Memfd memfd(kBytes);
  Require(fcntl(memfd.fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0, "seal");
  const int again = open(("/proc/self/fd/" + std::to_string(memfd.fd)).c_str(), O_RDWR | O_CLOEXEC);
  Require(again >= 0, "a second descriptor");
  Mapping one(memfd.fd, kBytes, PROT_READ | PROT_WRITE);
  Mapping two(again, kBytes, PROT_READ | PROT_WRITE);
  Mapping readable(again, kBytes, PROT_READ);
  close(again);
  const std::string first = Outcome(cudaHostRegister(one.data, kBytes, kMapped));
  const std::string second = Outcome(cudaHostRegister(two.data, kBytes, kMapped));
  b.report.Text("sealed memfd", first);
  b.report.Text("second mapping, other descriptor", second);
  if (first == "ok" && second == "ok") {
    void* device = nullptr;
    CUDA_OK(cudaHostGetDevicePointer(&device, one.data, 0));
    CUDA_OK(cudaMemset(device, 0x5a, 4096));
    CUDA_OK(cudaDeviceSynchronize());
    b.report.Text("written through one, read in the other",
                  two.data[4095] == std::byte{0x5a} ? "ok" : "DIFFERENT BYTES");
  }
  if (first == "ok") CUDA_OK(cudaHostUnregister(one.data));
  if (second == "ok") CUDA_OK(cudaHostUnregister(two.data));
  for (unsigned flag : {0u, unsigned{cudaHostRegisterReadOnly}}) {
    const std::string took = Outcome(cudaHostRegister(readable.data, kBytes, kMapped | flag));
    b.report.Text(flag ? "PROT_READ mapping, ReadOnly" : "PROT_READ mapping, no flag", took);
    if (took == "ok") CUDA_OK(cudaHostUnregister(readable.data));
  }
}

void RegisterChunks(Bench& b, std::byte* data) {
  std::vector<double> seconds;
  std::byte* device = nullptr;
  double total = 0;
  for (size_t at = 0; at < b.bytes; at += kGiB) {
    const auto start = Clock::now();
    CUDA_OK(cudaHostRegister(data + at, kGiB, kMapped));
    seconds.push_back(Since(start));
    total += seconds.back();
    ++b.registered;
    void* chunk = nullptr;
    CUDA_OK(cudaHostGetDevicePointer(&chunk, data + at, 0));
    if (at == 0) device = static_cast<std::byte*>(chunk);
    Require(chunk == device + at, "chunks do not lie side by side for the device");
  }
  b.report.Put("register, all chunks", total, "s");
  b.report.Put("register, median chunk", Median(seconds), "s/GiB");
  b.report.Put("register, slowest chunk", *std::max_element(seconds.begin(), seconds.end()),
               "s/GiB");
  b.report.Text("device pointer", device == data ? "equals the host pointer" : "differs");
  b.host = data;
  b.device = device;
}

void ReleaseSegment(Bench& b) {
  b.host = b.device = nullptr;
  for (; b.registered > 0; --b.registered) {
    CUDA_OK(cudaHostUnregister(b.mapping->data + (b.registered - 1) * kGiB));
  }
  b.mapping.reset();
  b.memfd.reset();
  b.fallback.reset();
}

void Registration(Bench& b) {
  CUDA_OK(cudaFree(nullptr));  // makes the context, and fails before the memory is taken
  const int threads = std::min(b.cpus, 8);
  b.memfd = std::make_unique<Memfd>(b.bytes);
  b.mapping = std::make_unique<Mapping>(b.memfd->fd, b.bytes, PROT_READ | PROT_WRITE);
  std::byte* data = b.mapping->data;
  const double touched = InParallel(threads, [&](int i) {
    constexpr size_t kPage = 4096;
    const size_t pages = b.bytes / kPage;
    for (size_t p = pages * i / threads; p < pages * (i + 1) / threads; ++p) {
      static_cast<volatile std::byte*>(data)[p * kPage] = std::byte{1};
    }
  });
  b.report.Put("populate by touching", touched / (b.bytes / kGiB), "s/GiB",
               std::to_string(threads) + " threads");
  Stamp(data, b.bytes, threads);
  try {
    RegisterChunks(b, data);
  } catch (const Failure&) {
    // The sections that follow still tell something with memory that CUDA allocates.
    ReleaseSegment(b);
    b.report.Text("segment of what follows", "cudaHostAlloc");
    b.fallback = std::make_unique<PinnedMemory>(b.bytes);
    data = static_cast<std::byte*>(static_cast<void*>(*b.fallback));
    Stamp(data, b.bytes, threads);
    void* device = nullptr;
    CUDA_OK(cudaHostGetDevicePointer(&device, data, 0));
    b.host = data;
    b.device = static_cast<std::byte*>(device);
    throw;
  }
  RegisterVariants(b);
}

void Unregistration(Bench& b) {
  Require(b.registered > 0, "nothing is registered");
  const size_t chunks = b.registered;
  const auto start = Clock::now();
  for (; b.registered > 0; --b.registered) {
    CUDA_OK(cudaHostUnregister(b.mapping->data + (b.registered - 1) * kGiB));
  }
  b.report.Put("unregister", Since(start) / chunks, "s/GiB");
}

void NeedSegment(const Bench& b) { Require(b.host != nullptr, "there is no registered segment"); }

// The device returns to each place what came from there: the stamps stay.
void PinnedCopies(Bench& b) {
  NeedSegment(b);
  DeviceMemory memory(kGiB);
  auto* device = memory.As<std::byte>();
  const auto in = [&](size_t at, size_t bytes, cudaStream_t stream) {
    CUDA_OK(cudaMemcpyAsync(device + at, b.host + at, bytes, cudaMemcpyHostToDevice, stream));
  };
  const auto out = [&](size_t at, size_t bytes, cudaStream_t stream) {
    CUDA_OK(cudaMemcpyAsync(b.host + at, device + at, bytes, cudaMemcpyDeviceToHost, stream));
  };
  const auto nothing = [] {};
  const auto wait = [&] { CUDA_OK(cudaStreamSynchronize(b.stream)); };
  Grid grid{"copies", "GB/s", "KiB", "direction", {"to device", "to host"}};
  for (size_t bytes = 64 * kKiB; bytes <= kGiB; bytes *= 4) {
    const double to = GpuMicros(b, 11, [&] { in(0, bytes, b.stream); });
    const double from = GpuMicros(b, 11, [&] { out(0, bytes, b.stream); });
    grid.lines.push_back({std::to_string(bytes / kKiB), {GBps(bytes, to), GBps(bytes, from)}});
  }
  b.report.Put(grid);
  b.report.Put("4 bytes to device, on the device", GpuMicros(b, 101, [&] { in(0, 4, b.stream); }),
               "us");
  b.report.Put("4 bytes to device, call until done",
               HostMicros(
                   201, [&] { in(0, 4, b.stream), wait(); }, nothing),
               "us");
  b.report.Put("4 bytes to host, call until done",
               HostMicros(
                   201, [&] { out(0, 4, b.stream), wait(); }, nothing),
               "us");
  Stream other;
  CUDA_OK(cudaStreamCreateWithFlags(other.out(), cudaStreamNonBlocking));
  const double both = HostMicros(
      5,
      [&] {
        in(0, kGiB / 2, b.stream);
        out(kGiB / 2, kGiB / 2, other);
        wait();
        CUDA_OK(cudaStreamSynchronize(other));
      },
      nothing);
  b.report.Put("both directions at once, 512 MiB each", GBps(kGiB, both), "GB/s", "sum");
  const cudaError_t across =
      cudaMemcpyAsync(device, b.host + kGiB - kMiB, 2 * kMiB, cudaMemcpyHostToDevice, b.stream);
  b.report.Text("one copy across two chunks", Outcome(across));
  wait();
}

void CheckGather(Bench& b, const Move& move) {
  const size_t pieces = move.row_bytes / kStampBytes;
  std::vector<uint64_t> rows(size_t{move.rows} * move.row_bytes / sizeof(uint64_t));
  for (size_t flight = 0; flight < std::size(kFlights); ++flight) {
    move.Enqueue(b, 32, flight);
    CUDA_OK(cudaMemcpyAsync(rows.data(), move.to, rows.size() * sizeof(uint64_t),
                            cudaMemcpyDeviceToHost, b.stream));
    CUDA_OK(cudaStreamSynchronize(b.stream));
    for (size_t i = 0; i < move.rows * pieces; ++i) {
      const size_t want = move.index->Drawn(i / pieces) * pieces + i % pieces + 1;
      Require(rows[i * kStampBytes / sizeof(uint64_t)] == want, "a gathered row has other bytes");
    }
  }
}

void MappedGather(Bench& b) {
  NeedSegment(b);
  const std::vector<int> ctas = {4, 8, 16, 32, 64, 132, 264};
  const std::vector<std::pair<uint32_t, MoveKernels>> sizes = {
      {128, Movers<128, Way::kGather>()},
      {256, Movers<256, Way::kGather>()},
      {512, Movers<512, Way::kGather>()},
      {1024, Movers<1024, Way::kGather>()}};
  DeviceMemory out(256 * kMiB);
  Grid best_rates{"best by row size", "GB/s", "row bytes", "rows", {"1024", "16384", "262144"}};
  Strings settings;
  for (const auto& [bytes, kernels] : sizes) {
    RowIndex index(b, b.bytes / bytes);
    Move move{kernels, b.device, out, &index, 4096, bytes};
    CheckGather(b, move);
    std::vector<double> line;
    for (uint32_t rows : {1024u, 16384u, 262144u}) {
      move.rows = rows;
      const bool curve = bytes == 512 && rows == 262144;
      const std::string name = std::to_string(rows) + " rows of " + std::to_string(bytes) + " B";
      const Best best = Sweep(b, name, "GB/s", move, ctas, curve);
      line.push_back(GBps(1.0 * rows * bytes, best.micros));
      settings.push_back(name + ": " + best.setting);
    }
    best_rates.lines.emplace_back(std::to_string(bytes), line);
  }
  b.report.Put(best_rates);
  for (const std::string& setting : settings) {
    const size_t colon = setting.find(':');
    b.report.Text("best for " + setting.substr(0, colon), setting.substr(colon + 2));
  }
}

// What a step pays for the few rows that it missed, and what the span of the rows costs (the
// device's page tables reach only so far).
void SmallMisses(Bench& b) {
  NeedSegment(b);
  const std::vector<int> ctas = {4, 8, 16, 32, 64, 132, 264};
  DeviceMemory out(16384 * 512);
  RowIndex index(b, b.bytes / 512);
  Move move{Movers<512, Way::kGather>(), b.device, out, &index, 0, 512};
  b.report.Put("no row at all, 32 CTAs", GpuMicros(b, 51, [&] { move.Enqueue(b, 32, 0); }), "us");
  for (uint32_t rows : {64u, 512u, 2048u}) {
    move.rows = rows;
    const std::string name = std::to_string(rows) + " rows of 512 B";
    const Best best = Sweep(b, name + ", by setting", "us", move, ctas, rows == 2048);
    b.report.Put(name, best.micros, "us", best.setting);
  }
  move.rows = 16384;
  for (size_t span = 64 * kMiB; span <= b.bytes; span *= 2) {
    RowIndex near(b, span / 512);
    move.index = &near;
    const double micros = GpuMicros(b, 15, [&] { move.Enqueue(b, 132, 1); });
    b.report.Put("16384 rows out of " + std::to_string(span / kMiB) + " MiB",
                 GBps(512.0 * move.rows, micros), "GB/s", "132 CTAs x 2");
  }
}

void GatherAndCopy(Bench& b) {
  NeedSegment(b);
  constexpr size_t kRow = 512, kAhead = 4;
  PinnedMemory staging(16384 * kRow);
  DeviceMemory device(16384 * kRow);
  std::vector<uint32_t> index(kMiB);
  const auto bits = static_cast<uint32_t>(std::bit_width(b.bytes / kRow) - 1);
  for (uint32_t i = 0; i < index.size(); ++i) index[i] = Permute(i, bits);
  size_t next = 0;  // other rows at every turn
  Grid grid{"gather + copy",
            "GB/s",
            "host threads",
            "rows end to end, rows gathered only",
            {"2048", "2048 gather", "16384", "16384 gath."}};
  for (int threads : {1, 2, 4, 8}) {
    if (threads > b.cpus) break;
    Crew crew(threads);
    for (bool prefetch : {false, true}) {
      std::vector<double> line;
      for (size_t rows : {2048u, 16384u}) {
        const auto gather = [&] {
          next = (next + rows) % index.size();
          crew.Run([&](int worker) {
            auto* to = static_cast<std::byte*>(static_cast<void*>(staging));
            const size_t end = rows * (worker + 1) / threads;
            for (size_t r = rows * worker / threads; r < end; ++r) {
              if (prefetch && r + kAhead < end) {
                const std::byte* ahead = b.host + index[next + r + kAhead] * kRow;
                for (size_t at = 0; at < kRow; at += 64) __builtin_prefetch(ahead + at);
              }
              memcpy(to + r * kRow, b.host + index[next + r] * kRow, kRow);
            }
          });
        };
        const auto copied = [&] {
          gather();
          CUDA_OK(cudaMemcpyAsync(device, staging, rows * kRow, cudaMemcpyDefault, b.stream));
          CUDA_OK(cudaStreamSynchronize(b.stream));
        };
        line.push_back(GBps(rows * kRow, HostMicros(21, copied, [] {})));
        line.push_back(GBps(rows * kRow, HostMicros(21, gather, [] {})));
      }
      grid.lines.emplace_back(std::to_string(threads) + (prefetch ? ", prefetching" : ""), line);
    }
  }
  b.report.Put(grid);
}

void WriteBack(Bench& b) {
  NeedSegment(b);
  constexpr uint32_t kMost = 65536, kWords = 512 / sizeof(uint32_t);
  DeviceMemory from(size_t{kMost} * 512);
  Launch(FillPermuted, kMost * kWords / kThreads, kThreads, b.stream, from.As<uint32_t>(),
         kMost * kWords, uint32_t{30});
  RowIndex index(b, b.bytes / 512);
  Move move{Movers<512, Way::kScatter>(), from, b.device, &index, 2048, 512};
  move.Enqueue(b, 32, 2);
  CUDA_OK(cudaStreamSynchronize(b.stream));
  for (uint32_t i = 0; i < move.rows * kWords; ++i) {
    uint32_t word = 0;
    memcpy(&word, b.host + index.Drawn(i / kWords) * 512 + i % kWords * sizeof(word), sizeof(word));
    Require(word == Permute(i, 30), "a written row has other bytes");
  }
  for (uint32_t rows : {8u, 64u, 2048u, kMost}) {
    move.rows = rows;
    const std::string name = std::to_string(rows) + " rows of 512 B";
    const Best best = Sweep(b, name + ", by setting", "GB/s", move, {1, 4, 8, 16, 32, 132}, false);
    b.report.Put(name, GBps(512.0 * rows, best.micros), "GB/s", best.setting);
    b.report.Put(name + ", time", best.micros, "us");
  }
}

void PingPong(Bench& b) {
  NeedSegment(b);
  constexpr uint32_t kWarm = 100, kRounds = 1000;
  std::atomic_ref<uint32_t> ping(*reinterpret_cast<uint32_t*>(b.host));
  std::atomic_ref<uint32_t> pong(*reinterpret_cast<uint32_t*>(b.host + 4096));
  ping = pong = 0;
  Launch(Answer, 1, 1, b.stream, reinterpret_cast<const uint32_t*>(b.device),
         reinterpret_cast<uint32_t*>(b.device + 4096), kWarm + kRounds);
  std::vector<double> seen;
  bool answered = true;
  for (uint32_t round = 1; round <= kWarm + kRounds && answered; ++round) {
    const auto start = Clock::now();
    ping.store(round, std::memory_order_release);
    while (pong.load(std::memory_order_acquire) != round && answered) answered = Since(start) < 2;
    if (round > kWarm) seen.push_back(Since(start) * 1e6);
  }
  CUDA_OK(cudaStreamSynchronize(b.stream));
  Require(answered, "the kernel did not answer");
  std::sort(seen.begin(), seen.end());
  b.report.Put("host to kernel and back, median", Median(seen), "us");
  b.report.Put("host to kernel and back, fastest", seen.front(), "us");
  b.report.Put("host to kernel and back, 99 %", seen[seen.size() * 99 / 100], "us");
}

struct Section {
  const char* name;
  void (*run)(Bench&);
};
constexpr Section kSections[] = {
    {"machine", Machine},
    {"device copy", DeviceCopy},
    {"memfd registration", Registration},
    {"pinned copies", PinnedCopies},
    {"mapped gather", MappedGather},
    {"small misses", SmallMisses},
    {"gather and copy", GatherAndCopy},
    {"graph launch", GraphLaunch},
    {"early launch", EarlyLaunch},
    {"write-back", WriteBack},
    {"ping-pong", PingPong},
    {"unregistration", Unregistration},
    {"pages under rows", PagesUnderRows},
    {"rows beside a stream", RowsBesideStream},
};

bool IsSection(const std::string& name) {
  return std::ranges::any_of(kSections,
                             [&](const Section& section) { return name == section.name; });
}

bool RunAll(Bench& b) {
  bool passed = true;
  const auto start = Clock::now();
  for (const Section& section : kSections) {
    if (!b.only.empty() && b.only != section.name && section.run != Machine) continue;
    b.report.Begin(section.name);
    const auto from = Clock::now();
    try {
      Require(Since(start) < kStartLimit, "no time left");
      section.run(b);
      CUDA_OK(cudaDeviceSynchronize());
    } catch (const std::exception& error) {
      passed = false;
      b.report.Fail(section.name, error.what());
    }
    b.report.Put("this section took", Since(from), "s");
  }
  return passed;
}

}  // namespace
}  // namespace ceilings

int main(int argc, char** argv) {
  setvbuf(stdout, nullptr, _IOLBF, 0);
  setenv("CUDA_MODULE_LOADING", "EAGER", 0);  // no kernel is loaded inside a measurement
  ceilings::Bench bench;
  bench.cpus = std::max(1u, std::thread::hardware_concurrency());
  std::string json;
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i], value = i + 1 < argc ? argv[i + 1] : "";
    const size_t gib = strtoul(value.c_str(), nullptr, 10);
    if (flag == "--json" && !value.empty()) {
      json = value;
    } else if (flag == "--gib" && gib >= 2 && gib <= 64 && std::has_single_bit(gib)) {
      bench.bytes = gib * ceilings::kGiB;
    } else if (flag == "--only" && ceilings::IsSection(value)) {
      bench.only = value;
    } else {
      fprintf(stderr,
              "ceilings: not an option and its value: '%s' '%s'\n"
              "usage: ceilings [--json FILE] [--gib N] [--only SECTION], N a power of two from 2 "
              "to 64, SECTION one of:\n",
              flag.c_str(), value.c_str());
      for (const auto& section : ceilings::kSections) fprintf(stderr, "  %s\n", section.name);
      return 2;
    }
  }
  bool passed = ceilings::RunAll(bench);
  if (!json.empty() && !bench.report.Write(json)) {
    fprintf(stderr, "ceilings: cannot write %s\n", json.c_str());
    passed = false;
  }
  return passed ? 0 : 1;
}
