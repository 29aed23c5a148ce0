// Rows read at random from host memory of other kinds, for tests/gpu/ceilings.cu: what the pages
// under the rows cost. A device's page tables reach only so far, and the wider the span of the
// rows, the more the size of a page decides. A part of that program, which alone includes it.
#pragma once

#include <cuda_runtime.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "ceilings_measure.cuh"

namespace ceilings {

enum class Pages { kShared, kSharedAdvised, kSharedHuge, kPrivateAdvised, kCuda, kManaged };

inline const char* NameOf(Pages pages) {
  switch (pages) {
    case Pages::kShared:
      return "memfd";
    case Pages::kSharedAdvised:
      return "memfd, MADV_HUGEPAGE";
    case Pages::kSharedHuge:
      return "memfd of 2 MiB pages";
    case Pages::kPrivateAdvised:
      return "private, MADV_HUGEPAGE";
    case Pages::kCuda:
      return "cudaHostAlloc";
    case Pages::kManaged:
      return "managed, on the host";
  }
  return "";
}

// Host memory of a kind, populated and registered as one piece.
class PagedMemory {
 public:
  PagedMemory(Pages pages, size_t bytes, int threads)
      : bytes_(bytes), cuda_(pages == Pages::kCuda), managed_(pages == Pages::kManaged) {
    if (managed_) {
      Manage();
    } else if (cuda_) {
      CUDA_OK(cudaHostAlloc(&data_, bytes, cudaHostAllocPortable | cudaHostAllocMapped));
    } else {
      Map(pages);
    }
    const auto start = Clock::now();
    InParallel(threads, [&](int i) {
      constexpr size_t kPage = 4096;
      auto* at = static_cast<volatile std::byte*>(data_);
      const size_t count = bytes / kPage;
      for (size_t p = count * i / threads; p < count * (i + 1) / threads; ++p) {
        at[p * kPage] = std::byte{1};
      }
    });
    populate_seconds = Since(start);
    if (!cuda_ && !managed_) {
      const auto from = Clock::now();
      Check(cudaHostRegister(data_, bytes, cudaHostRegisterMapped | cudaHostRegisterPortable),
            "cudaHostRegister");
      registered_ = true;
      register_seconds = Since(from);
    }
    device = data_;
    if (!managed_) CUDA_OK(cudaHostGetDevicePointer(&device, data_, 0));
  }
  ~PagedMemory() {
    if (cuda_) {
      (void)cudaFreeHost(data_);
      return;
    }
    if (managed_) {
      (void)cudaFree(data_);
      return;
    }
    if (registered_) (void)cudaHostUnregister(data_);
    if (data_) munmap(data_, bytes_);
    if (fd_ >= 0) close(fd_);
  }
  PagedMemory(const PagedMemory&) = delete;
  PagedMemory& operator=(const PagedMemory&) = delete;

  void* device = nullptr;
  double populate_seconds = 0, register_seconds = 0;

 private:
  // Stays on the host, and the device reads it there.
  void Manage() {
    CUDA_OK(cudaMallocManaged(&data_, bytes_, cudaMemAttachGlobal));
    int self = 0;
    CUDA_OK(cudaGetDevice(&self));
    CUDA_OK(cudaMemAdvise(data_, bytes_, cudaMemAdviseSetPreferredLocation,
                          {cudaMemLocationTypeHost, 0}));
    CUDA_OK(cudaMemAdvise(data_, bytes_, cudaMemAdviseSetAccessedBy,
                          {cudaMemLocationTypeDevice, self}));
  }

  void Map(Pages pages) {
    const bool shared = pages != Pages::kPrivateAdvised;
    if (shared) {
      const unsigned huge = pages == Pages::kSharedHuge ? MFD_HUGETLB | MFD_HUGE_2MB : 0u;
      fd_ = memfd_create("ceilings", MFD_CLOEXEC | huge);
      Require(fd_ >= 0 && ftruncate(fd_, static_cast<off_t>(bytes_)) == 0, strerror(errno));
    }
    void* at = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                    shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, fd_, 0);
    Require(at != MAP_FAILED, std::string("mmap: ") + strerror(errno));
    data_ = at;
    if (pages == Pages::kSharedAdvised || pages == Pages::kPrivateAdvised) {
      Require(madvise(data_, bytes_, MADV_HUGEPAGE) == 0,
              std::string("madvise: ") + strerror(errno));
    }
  }

  const size_t bytes_;
  const bool cuda_, managed_;
  bool registered_ = false;
  int fd_ = -1;
  void* data_ = nullptr;
};

inline void PagesUnderRows(Bench& b) {
  constexpr uint32_t kRow = 512, kRows = 16384;
  const size_t bytes = b.pages_bytes;
  const int threads = std::min(b.cpus, 8);
  DeviceMemory out(size_t{kRows} * kRow);
  Grid grid{"16384 rows of 512 B by the span of the rows", "GB/s", "memory", "GiB", {}};
  for (size_t span = kGiB; span <= bytes; span *= 2)
    grid.columns.push_back(std::to_string(span / kGiB));
  for (Pages pages : {Pages::kShared, Pages::kSharedAdvised, Pages::kSharedHuge,
                      Pages::kPrivateAdvised, Pages::kCuda, Pages::kManaged}) {
    try {
      const PagedMemory memory(pages, bytes, threads);
      b.report.Put(std::string(NameOf(pages)) + ", populate",
                   memory.populate_seconds / (bytes / kGiB), "s/GiB");
      b.report.Put(std::string(NameOf(pages)) + ", register",
                   memory.register_seconds / (bytes / kGiB), "s/GiB");
      std::vector<double> line;
      for (size_t span = kGiB; span <= bytes; span *= 2) {
        RowIndex index(b, span / kRow);
        const Move move{Movers<kRow, Way::kGather>(), memory.device, out, &index, kRows, kRow};
        double best = 0;
        for (size_t flight : {1, 2}) {
          const double micros = GpuMicros(b, 15, [&] { move.Enqueue(b, 132, flight); });
          best = std::max(best, GBps(1.0 * kRows * kRow, micros));
        }
        line.push_back(best);
      }
      grid.lines.emplace_back(NameOf(pages), line);
    } catch (const Failure& failure) {  // huge pages are the administrator's to give
      b.report.Text(NameOf(pages), failure.what());
    }
  }
  b.report.Put(grid);
}

}  // namespace ceilings
