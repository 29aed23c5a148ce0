#include "kernels/cuda/fake_runtime.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"

namespace {

using sparsekv::cuda::fake::Binder;

// Work with the work that must be done before it.
struct Node {
  std::function<void()> run;
  std::vector<size_t> after;
  bool is_kernel = false;
};
using Nodes = std::vector<Node>;

constexpr size_t kNothing = static_cast<size_t>(-1);

struct Runtime {
  std::map<const void*, Binder> kernels;
  std::map<const void*, size_t> shared_bytes;  // allowed by kernel
  std::set<void*> memory;
  sparsekv::cuda::fake::Statistics statistics;
  std::mt19937_64 random;
  std::string_view failing;
  Nodes pending;  // given to streams, not run yet
  Nodes* capture = nullptr;
  bool running = false;
};
Runtime& runtime() {
  static Runtime instance;
  return instance;
}

cudaError_t Result(std::string_view call) {
  return runtime().failing == call ? cudaErrorUnknown : cudaSuccess;
}

}  // namespace

// What the API's opaque handles point to.
struct CUstream_st {
  size_t last = kNothing;  // in the list that is being filled
  std::vector<size_t> waits;
  int priority = 0;
};
struct CUevent_st {
  size_t at = kNothing;
};
struct CUgraph_st {
  Nodes nodes;
};
struct CUgraphExec_st {
  Nodes nodes;
};

namespace {

Nodes& Filled() { return runtime().capture ? *runtime().capture : runtime().pending; }

void Enqueue(cudaStream_t stream, std::function<void()> run) {
  Node node{.run = std::move(run), .after = std::move(stream->waits)};
  stream->waits.clear();
  if (stream->last != kNothing) node.after.push_back(stream->last);
  stream->last = Filled().size();
  Filled().push_back(std::move(node));
}

// In a random order that keeps every edge.
void RunAll(const Nodes& nodes) {
  std::vector<bool> done(nodes.size());
  auto ready = [&](size_t i) {
    if (done[i]) return false;
    for (size_t before : nodes[i].after) {
      if (!done[before]) return false;
    }
    return true;
  };
  for (size_t left = nodes.size(); left > 0; --left) {
    std::vector<size_t> candidates;
    for (size_t i = 0; i < nodes.size(); ++i) {
      if (ready(i)) candidates.push_back(i);
    }
    CHECK(!candidates.empty());
    const size_t next = candidates[runtime().random() % candidates.size()];
    nodes[next].run();
    done[next] = true;
  }
}

// Streams and events outlive what they point into: all of them are asked to forget.
std::set<cudaStream_t>& Streams() {
  static std::set<cudaStream_t> streams;
  return streams;
}
std::set<cudaEvent_t>& Events() {
  static std::set<cudaEvent_t> events;
  return events;
}
void ForgetPlaces() {
  for (cudaStream_t stream : Streams()) *stream = {.priority = stream->priority};
  for (cudaEvent_t event : Events()) event->at = kNothing;
}

void Drain() {
  CHECK(runtime().capture == nullptr);
  const Nodes nodes = std::exchange(runtime().pending, {});
  ForgetPlaces();
  RunAll(nodes);
}

cudaError_t Take(void** memory, size_t bytes, std::string_view call) {
  CHECK(runtime().capture == nullptr);
  if (const cudaError_t error = Result(call); error != cudaSuccess) return error;
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(*memory, 0xA5, bytes);
  runtime().memory.insert(*memory);
  ++runtime().statistics.allocations;
  ++runtime().statistics.live_allocations;
  return cudaSuccess;
}

cudaError_t Return(void* memory) {
  if (memory == nullptr) return cudaSuccess;
  CHECK_EQ(runtime().memory.erase(memory), 1u);
  std::free(memory);
  --runtime().statistics.live_allocations;
  return cudaSuccess;
}

}  // namespace

namespace sparsekv::cuda::fake {

void AddKernel(const void* function, Binder binder) {
  runtime().kernels[function] = std::move(binder);
}
const Statistics& statistics() { return runtime().statistics; }
void Seed(uint64_t seed) { runtime().random.seed(seed); }
void Fail(const char* call) { runtime().failing = call ? call : ""; }

}  // namespace sparsekv::cuda::fake

extern "C" {

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return Result("cudaGetDevice");
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  properties->multiProcessorCount = 4;
  properties->major = 9;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = sparsekv::cuda::fake::kLeastPriority;
  *greatest = sparsekv::cuda::fake::kGreatestPriority;
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t) { return "the fake was told to fail"; }

cudaError_t cudaMalloc(void** memory, size_t bytes) { return Take(memory, bytes, "cudaMalloc"); }
cudaError_t cudaMallocHost(void** memory, size_t bytes) {
  return Take(memory, bytes, "cudaMallocHost");
}
cudaError_t cudaFree(void* memory) { return Return(memory); }
cudaError_t cudaFreeHost(void* memory) { return Return(memory); }

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int priority) {
  *stream = *Streams().insert(new CUstream_st()).first;
  (*stream)->priority = priority;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  Streams().erase(stream);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = *Events().insert(new CUevent_st()).first;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  Events().erase(event);
  delete event;
  return cudaSuccess;
}
// An event is where the stream's last work ends, and nothing of its own that others would wait for.
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (stream->last == kNothing || !stream->waits.empty()) Enqueue(stream, [] {});
  event->at = stream->last;
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (event->at != kNothing) stream->waits.push_back(event->at);
  return cudaSuccess;
}

// A wait is for one stream; that the others' work is done too is more than CUDA promises, so the
// tape's own joins are checked by what has not run when the first stream is through.
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (const cudaError_t error = Result("cudaStreamSynchronize"); error != cudaSuccess) return error;
  Nodes& nodes = runtime().pending;
  std::set<size_t> needed;
  std::vector<size_t> open = stream->waits;
  if (stream->last != kNothing) open.push_back(stream->last);
  while (!open.empty()) {
    const size_t node = open.back();
    open.pop_back();
    if (!needed.insert(node).second) continue;
    open.insert(open.end(), nodes[node].after.begin(), nodes[node].after.end());
  }
  CHECK_EQ(needed.size(), nodes.size());
  Drain();
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaStreamSynchronize(stream); }
cudaError_t cudaDeviceSynchronize() {
  Drain();
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  Enqueue(stream, [=] { std::memcpy(to, from, bytes); });
  return Result("cudaMemcpyAsync");
}
cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t stream) {
  Enqueue(stream, [=] { std::memset(to, byte, bytes); });
  return cudaSuccess;
}
// An early launch may do nothing but shorten the wait for the one kernel before it.
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function,
                                void** args) {
  const size_t allowed = std::max<size_t>(runtime().shared_bytes[function], 48 << 10);
  CHECK_LE(config->dynamicSmemBytes, allowed);
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config->attrs[i];
    if (attribute.id == cudaLaunchAttributeClusterDimension) {
      CHECK_EQ(config->gridDim.x % attribute.val.clusterDim.x, 0u);
      ++runtime().statistics.cluster_launches;
      continue;
    }
    CHECK(attribute.id == cudaLaunchAttributeProgrammaticStreamSerialization);
    CHECK(config->stream->waits.empty() && config->stream->last != kNothing);
    CHECK(Filled()[config->stream->last].is_kernel);
    ++runtime().statistics.early_launches;
  }
  runtime().statistics.last_priority = config->stream->priority;
  Enqueue(config->stream, [run = runtime().kernels.at(function)(args)] {
    ++runtime().statistics.kernels_run;
    run();
  });
  Filled().back().is_kernel = true;
  return Result("cudaLaunchKernelExC");
}
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  CHECK(runtime().capture == nullptr);
  runtime().shared_bytes[function] = static_cast<size_t>(value);
  size_t& most = runtime().statistics.most_dynamic_shared_bytes;
  most = std::max(most, static_cast<size_t>(value));
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  CHECK(runtime().pending.empty());
  ForgetPlaces();
  runtime().capture = new Nodes();
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  const std::unique_ptr<Nodes> nodes(std::exchange(runtime().capture, nullptr));
  ForgetPlaces();
  *graph = new CUgraph_st{*nodes};
  ++runtime().statistics.captures;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph,
                                 unsigned long long flags) {
  CHECK_EQ(flags, uint64_t{cudaGraphInstantiateFlagUseNodePriority});
  *exec = new CUgraphExec_st{graph->nodes};
  ++runtime().statistics.live_graphs;
  return Result("cudaGraphInstantiate");
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  --runtime().statistics.live_graphs;
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  ++runtime().statistics.graph_launches;
  Enqueue(stream, [exec] { RunAll(exec->nodes); });
  return cudaSuccess;
}

}  // extern "C"
