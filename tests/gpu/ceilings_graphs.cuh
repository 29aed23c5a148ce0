// Graph launch, for tests/gpu/ceilings.cu: what a chain of small nodes costs the host and the
// device, as a graph and as plain launches. A part of that program, which alone includes it.
#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "ceilings_measure.cuh"

namespace ceilings {

__global__ void Tiny(uint32_t* counter) {
  if (blockIdx.x == 0 && threadIdx.x == 0) *counter += 1;
}

// For programmatic dependent launch: the next kernel may start before this one has waited.
__global__ void TinyEarly(uint32_t* counter) {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
#endif
  if (blockIdx.x == 0 && threadIdx.x == 0) *counter += 1;
}

using Build = std::function<void(cudaStream_t, uint32_t* counter)>;

// On a stream of its own: a capture that fails spoils no other.
inline Graph Capture(const Build& build, uint32_t* counter) {
  Stream stream;
  CUDA_OK(cudaStreamCreateWithFlags(stream.out(), cudaStreamNonBlocking));
  CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  build(stream, counter);
  Graph graph;
  CUDA_OK(cudaStreamEndCapture(stream, graph.out()));
  return graph;
}

// Launch call, launch and wait, device, device for a node; `counted` nodes must have run.
inline std::vector<double> TimeLaunch(Bench& b, int nodes, int counted, uint32_t* counter,
                                      const std::function<void()>& launch) {
  const auto wait = [&] { CUDA_OK(cudaStreamSynchronize(b.stream)); };
  uint32_t count = 0;
  CUDA_OK(cudaMemsetAsync(counter, 0, sizeof(count), b.stream));
  launch();
  CUDA_OK(cudaMemcpyAsync(&count, counter, sizeof(count), cudaMemcpyDeviceToHost, b.stream));
  wait();
  Require(count == static_cast<uint32_t>(counted), "not every node ran");
  const double call = HostMicros(31, launch, wait);
  const double whole = HostMicros(
      31, [&] { launch(), wait(); }, [] {});
  const double device = GpuMicros(b, 21, launch, 60 + 5 * nodes);
  return {call, whole, device, device / nodes};
}

inline void TimeGraph(Bench& b, Grid& grid, const std::string& name, int nodes, int counted,
                      const Build& build) {
  DeviceMemory counters(4 * sizeof(uint32_t));
  auto* counter = counters.As<uint32_t>();
  const Graph graph = Capture(build, counter), other = Capture(build, counter + 1);
  std::optional<GraphExec> exec;
  const auto make = [&] { CUDA_OK(cudaGraphInstantiate(exec.emplace().out(), graph, 0)); };
  const double instantiate = HostMicros(5, make, [&] { exec.reset(); });
  make();
  bool turn = false;
  cudaGraphExecUpdateResultInfo info{};
  const auto update = [&] {
    turn = !turn;
    CUDA_OK(cudaGraphExecUpdate(*exec, turn ? other : graph, &info));
  };
  double updated = kNone;  // not every kind of node can be updated
  try {
    updated = HostMicros(11, update, [] {});
  } catch (const Failure&) {
  }
  exec.reset();
  make();
  CUDA_OK(cudaGraphUpload(*exec, b.stream));
  std::vector<double> line = {instantiate, updated};
  const auto launch = [&] { CUDA_OK(cudaGraphLaunch(*exec, b.stream)); };
  for (double value : TimeLaunch(b, nodes, counted, counter, launch)) line.push_back(value);
  grid.lines.emplace_back(name, line);
}

inline Build Chain(int nodes, int ctas) {
  return [=](cudaStream_t stream, uint32_t* counter) {
    for (int i = 0; i < nodes; ++i) Launch(Tiny, ctas, kThreads, stream, counter);
  };
}

inline void LaunchEarly(cudaStream_t stream, uint32_t* counter) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = 1;
  config.blockDim = kThreads;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = 1;
  CUDA_OK(cudaLaunchKernelEx(&config, TinyEarly, counter));
}

const Strings kGraphColumns = {"instantiate", "update", "launch call",
                               "launch+wait", "device", "device/node"};

inline void GraphLaunch(Bench& b) {
  Grid grid{"graphs", "us", "what", "time", kGraphColumns};
  DeviceMemory counters(4 * sizeof(uint32_t)), target(64 * kKiB);
  auto* counter = counters.As<uint32_t>();
  PinnedMemory source(64 * kKiB);
  for (int nodes : {1, 100, 1000}) {
    const std::string count = std::to_string(nodes);
    TimeGraph(b, grid, "graph, " + count, nodes, nodes, Chain(nodes, 1));
    std::vector<double> line = {kNone, kNone};
    const auto launch = [&] { Chain(nodes, 1)(b.stream, counter); };
    for (double v : TimeLaunch(b, nodes, nodes, counter, launch)) line.push_back(v);
    grid.lines.emplace_back("plain launches, " + count, line);
  }
  TimeGraph(b, grid, "graph, 1000 of a CTA an SM", 1000, 1000, Chain(1000, b.sms));
  Stream side;
  Event forked, done;
  CUDA_OK(cudaStreamCreateWithFlags(side.out(), cudaStreamNonBlocking));
  CUDA_OK(cudaEventCreateWithFlags(forked.out(), cudaEventDisableTiming));
  CUDA_OK(cudaEventCreateWithFlags(done.out(), cudaEventDisableTiming));
  TimeGraph(b, grid, "graph, 1000 + 100 on branches", 1000, 1000, [&](cudaStream_t s, uint32_t* c) {
    for (int i = 0; i < 1000; i += 10) {  // as a prefetch beside a layer
      CUDA_OK(cudaEventRecord(forked, s));
      CUDA_OK(cudaStreamWaitEvent(side, forked));
      Launch(Tiny, 1, kThreads, static_cast<cudaStream_t>(side), c + 2);
      CUDA_OK(cudaEventRecord(done, side));
      Chain(10, 1)(s, c);
      CUDA_OK(cudaStreamWaitEvent(s, done));
    }
  });
  for (int nodes : {1, 100}) {
    const std::string name = "graph, " + std::to_string(nodes) + " copies of 64 KiB";
    TimeGraph(b, grid, name, nodes, 0, [&](cudaStream_t stream, uint32_t*) {
      for (int i = 0; i < nodes; ++i) {
        CUDA_OK(cudaMemcpyAsync(target, source, 64 * kKiB, cudaMemcpyHostToDevice, stream));
      }
    });
  }
  b.report.Put(grid);
  b.report.Put("wait on an idle stream",
               HostMicros(
                   101, [&] { CUDA_OK(cudaStreamSynchronize(b.stream)); }, [] {}),
               "us");
}

inline void EarlyLaunch(Bench& b) {
  if (!b.hopper) {
    b.report.Text("skipped", "needs compute capability 9.0");
    return;
  }
  Grid grid{"programmatic dependent launch", "us", "what", "time", kGraphColumns};
  DeviceMemory counters(sizeof(uint32_t));
  auto* counter = counters.As<uint32_t>();
  const auto chain = [](cudaStream_t stream, uint32_t* c) {
    for (int i = 0; i < 1000; ++i) LaunchEarly(stream, c);
  };
  std::vector<double> line = {kNone, kNone};
  const auto launch = [&] { chain(b.stream, counter); };
  for (double v : TimeLaunch(b, 1000, 1000, counter, launch)) line.push_back(v);
  grid.lines.emplace_back("plain launches, 1000", line);
  TimeGraph(b, grid, "graph, 1000", 1000, 1000, chain);
  b.report.Put(grid);
}

}  // namespace ceilings
