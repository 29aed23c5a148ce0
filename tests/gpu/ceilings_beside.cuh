// What rows that come over the link take from what streams from the device's own memory meanwhile,
// for tests/gpu/ceilings.cu: whether a prefetch can hide. A part of that program, which alone
// includes it.
#pragma once

#include <string>
#include <utility>

#include "ceilings_measure.cuh"
#include "ceilings_pages.cuh"

namespace ceilings {

inline void RowsBesideStream(Bench& b) {
  constexpr uint32_t kRow = 512, kRows = 3072, kKernels = 16;
  constexpr size_t kBytes = 30 * kMiB;  // of one kernel's stream
  const size_t bytes = std::min(b.pages_bytes, 4 * kGiB);
  DeviceMemory weights(kKernels * kBytes), out(size_t{kRows} * kRow), sink(sizeof(uint32_t));
  Stream side;
  Event fork, join;
  CUDA_OK(cudaStreamCreateWithFlags(side.out(), cudaStreamNonBlocking));
  CUDA_OK(cudaEventCreateWithFlags(fork.out(), cudaEventDisableTiming));
  CUDA_OK(cudaEventCreateWithFlags(join.out(), cudaEventDisableTiming));
  const auto read = [&] {
    for (uint32_t k = 0; k < kKernels; ++k) {
      const auto* from = reinterpret_cast<const uint4*>(weights.As<std::byte>() + k * kBytes);
      Launch(ReadAll, b.sms * 3, kThreads, b.stream, from, kBytes / sizeof(uint4),
             sink.As<uint32_t>());
    }
  };
  const double stream = GpuMicros(b, 15, read, 120);
  b.report.Put("16 kernels that read 30 MiB each", stream, "us");
  Grid grid{"3072 rows of 512 B from 4 GiB, and what they add to the kernels",
            "us",
            "memory",
            "CTAs",
            {"24: alone", "24: added", "132: alone", "132: added"}};
  for (Pages pages : {Pages::kShared, Pages::kCuda, Pages::kManaged}) {
    const PagedMemory memory(pages, bytes, std::min(b.cpus, 8));
    RowIndex index(b, bytes / kRow);
    const Move move{Movers<kRow, Way::kGather>(), memory.device, out, &index, kRows, kRow};
    std::vector<double> line;
    for (int ctas : {24, 132}) {
      line.push_back(GpuMicros(b, 15, [&] { move.Enqueue(b, ctas, 0); }));
      const double both = GpuMicros(
          b, 15,
          [&] {
            CUDA_OK(cudaEventRecord(fork, b.stream));
            CUDA_OK(cudaStreamWaitEvent(side, fork));
            Launch(move.kernels[0], ctas, kThreads, side, static_cast<const uint4*>(move.from),
                   static_cast<uint4*>(move.to), static_cast<const uint32_t*>(index.Next(kRows)),
                   kRows);
            CUDA_OK(cudaEventRecord(join, side));
            read();
            CUDA_OK(cudaStreamWaitEvent(b.stream, join));
          },
          160);
      line.push_back(both - stream);
    }
    grid.lines.emplace_back(NameOf(pages), line);
  }
  b.report.Put(grid);
}

}  // namespace ceilings
