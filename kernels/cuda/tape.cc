#include "kernels/cuda/tape.h"

#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "base/check.h"

namespace sparsekv::cuda {

namespace {
constexpr size_t kAlign = 256;
// Marks of the tape's own: where a step begins, and where each lane but the first ends.
constexpr uint32_t kBeginMark = 0, kFirstMark = kLanes;
constexpr uint32_t kPlainSharedBytes = 40 << 10;  // what a kernel surely gets without asking

size_t Aligned(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }
}  // namespace

void DeviceFailed(const char* file, int line, const char* what, const char* why) {
  std::fprintf(stderr, "sparsekv: cuda: %s (%s:%d: %s)\n", why, file, line, what);
  std::fflush(stderr);
  _exit(kDeviceErrorExit);
}

Tape::Tape(bool graphs, bool early) : graphs_(graphs), early_(early) {
  int device = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  CUDA_CHECK(cudaGetDeviceProperties(&properties_, device));
  int least = 0, greatest = 0;
  CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  // What runs beside a step's own work goes first: otherwise it waits until the last CTA of a large
  // product has found room. It is short; a prediction's scoring is not small (kernels/README.md).
  for (int lane = 0; lane < kLanes; ++lane) {
    CUDA_CHECK(cudaStreamCreateWithPriority(&streams_[lane], cudaStreamNonBlocking,
                                            lane == 0 ? least : greatest));
  }
  CUDA_CHECK(cudaMallocHost(reinterpret_cast<void**>(&param_host_), kParamBytes));
  CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&param_device_), kParamBytes));
  CUDA_CHECK(cudaMallocHost(reinterpret_cast<void**>(&result_host_), kResultBytes));
}

// Errors are not looked at: the process may be ending because of one.
Tape::~Tape() {
  cudaDeviceSynchronize();
  for (auto& [shape, graph] : kept_) cudaGraphExecDestroy(graph.exec);
  for (cudaEvent_t event : events_) cudaEventDestroy(event);
  for (cudaStream_t stream : streams_) cudaStreamDestroy(stream);
  for (std::byte* memory : scratch_) cudaFree(memory);
  for (std::byte* memory : old_scratch_) cudaFree(memory);
  cudaFreeHost(param_host_);
  cudaFree(param_device_);
  cudaFreeHost(result_host_);
}

void Tape::Begin(StepKind kind) {
  kind_ = kind;
  ++noted_;
  lane_ = Lane::kCompute;
  ops_.clear();
  args_.clear();
  arg_offsets_.clear();
  calls_.clear();
  results_.clear();
  param_used_ = result_used_ = 0;
  marks_ = kFirstMark;
  seen_ = {};
  points_.clear();
}

Tape::Op& Tape::Note(Op::Kind kind) {
  Op& op = ops_.emplace_back();
  ++noted_;
  op.kind = kind;
  op.lane = static_cast<uint16_t>(lane_);
  return op;
}

const void* Tape::PutParams(const void* values, size_t bytes) {
  const size_t offset = Aligned(param_used_, 16);
  CHECK_LE(offset + bytes, kParamBytes);
  if (bytes > 0) std::memcpy(param_host_ + offset, values, bytes);
  param_used_ = offset + bytes;
  return param_device_ + offset;
}

void Tape::Copy(void* to, const void* from, size_t bytes) {
  Op& op = Note(Op::kCopy);
  op.function = to;
  op.from = from;
  op.bytes = bytes;
}

void Tape::Fill(void* to, uint8_t byte, size_t bytes) {
  Op& op = Note(Op::kFill);
  op.function = to;
  op.other = byte;
  op.bytes = bytes;
}

void Tape::Fetch(void* host, const void* device, size_t bytes) {
  const size_t offset = Aligned(result_used_, 16);
  CHECK_LE(offset + bytes, kResultBytes);
  result_used_ = offset + bytes;
  Copy(result_host_ + offset, device, bytes);
  results_.push_back({host, offset, bytes});
}

void Tape::Call(std::function<void(cudaStream_t)> call) {
  CHECK(kind_ == StepKind::kPrompt);
  Note(Op::kCall).other = static_cast<uint32_t>(calls_.size());
  calls_.push_back(std::move(call));
}

uint32_t Tape::Mark() {
  Note(Op::kMark).other = marks_;
  Seen& seen = seen_[static_cast<size_t>(lane_)];
  seen[static_cast<size_t>(lane_)] = marks_ + 1;
  points_.push_back({lane_, seen});
  return marks_++;
}

void Tape::WaitFor(uint32_t mark) {
  CHECK_LT(mark, marks_);
  const Point& point = points_[mark - kFirstMark];
  Seen& seen = seen_[static_cast<size_t>(lane_)];
  if (seen[static_cast<size_t>(point.lane)] > mark) return;
  Note(Op::kWait).other = mark;
  for (size_t lane = 0; lane < seen.size(); ++lane) {
    seen[lane] = std::max(seen[lane], point.seen[lane]);
  }
}

// A buffer that grows leaves the old one to the kernels that were given it.
std::byte* Tape::Scratch(size_t bytes) {
  CHECK(lane_ != Lane::kKeep);  // ReserveScratch has none for it
  const auto lane = static_cast<size_t>(lane_);
  if (bytes > scratch_bytes_[lane]) {
    if (scratch_[lane]) old_scratch_.push_back(scratch_[lane]);
    CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&scratch_[lane]), Aligned(bytes, kAlign)));
    scratch_bytes_[lane] = bytes;
  }
  return scratch_[lane];
}

void Tape::ReserveScratch(size_t bytes) {
  for (Lane lane : {Lane::kPrefetch, Lane::kPredict, Lane::kCompute}) {
    lane_ = lane;
    Scratch(bytes);
  }
}

uint64_t Tape::Shape() const {
  const uint64_t sizes[] = {param_used_, result_used_, args_.size(), ops_.size()};
  uint64_t hash = XXH3_64bits(sizes, sizeof(sizes));
  hash = XXH3_64bits_withSeed(ops_.data(), ops_.size() * sizeof(Op), hash);
  return XXH3_64bits_withSeed(args_.data(), args_.size(), hash);
}

void Tape::Finish() {
  ++statistics_.steps;
  if (graphs_ && kind_ == StepKind::kDecode) {
    RunGraph();
  } else {
    RunDirectly();
  }
  const auto begin = std::chrono::steady_clock::now();
  Wait();
  if (kind_ == StepKind::kDecode) {
    const auto launched = [](const Op& op) { return op.kind != Op::kMark && op.kind != Op::kWait; };
    statistics_.decode.steps += 1;
    statistics_.decode.operations += static_cast<uint64_t>(std::ranges::count_if(ops_, launched));
    statistics_.decode.wait_s +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  for (const Result& result : results_) {
    std::memcpy(result.to, result_host_ + result.offset, result.bytes);
  }
  for (std::byte* memory : old_scratch_) CUDA_CHECK(cudaFree(memory));
  old_scratch_.clear();
  Begin(StepKind::kPrompt);
}

void Tape::Wait() {
  constexpr useconds_t kPoll = 200;
  while (progress_ && kind_ == StepKind::kPrompt) {
    const cudaError_t error = cudaStreamQuery(streams_[0]);
    if (error == cudaSuccess) return;
    if (error != cudaErrorNotReady) CUDA_CHECK(error);
    progress_();
    usleep(kPoll);
  }
  CUDA_CHECK(cudaStreamSynchronize(streams_[0]));
}

// Also what is captured. All lanes begin and end with the step.
void Tape::RunDirectly() {
  if (param_used_ > 0) {
    CUDA_CHECK(cudaMemcpyAsync(param_device_, param_host_, param_used_, cudaMemcpyHostToDevice,
                               streams_[0]));
  }
  for (uint32_t lane = 1; lane < kLanes; ++lane) {
    if (!Uses(lane)) continue;
    CUDA_CHECK(cudaEventRecord(Event(kBeginMark), streams_[0]));
    CUDA_CHECK(cudaStreamWaitEvent(streams_[lane], Event(kBeginMark), 0));
  }
  std::ranges::fill(follows_kernel_, false);
  for (const Op& op : ops_) Issue(op);
  for (uint32_t lane = 1; lane < kLanes; ++lane) {
    if (!Uses(lane)) continue;
    CUDA_CHECK(cudaEventRecord(Event(lane), streams_[lane]));
    CUDA_CHECK(cudaStreamWaitEvent(streams_[0], Event(lane), 0));
  }
}

bool Tape::Uses(uint32_t lane) const {
  return std::ranges::any_of(ops_, [lane](const Op& op) { return op.lane == lane; });
}

void Tape::RunGraph() {
  const uint64_t shape = Shape();
  auto found = kept_.find(shape);
  if (found == kept_.end()) {
    if (kept_.size() >= kMostGraphs) {
      const auto oldest = std::ranges::min_element(
          kept_, {}, [](const auto& entry) { return entry.second.last_use; });
      CUDA_CHECK(cudaGraphExecDestroy(oldest->second.exec));
      kept_.erase(oldest);
    }
    found = kept_.emplace(shape, Graph{Capture(), 0}).first;
  }
  found->second.last_use = ++statistics_.graph_steps;
  CUDA_CHECK(cudaGraphLaunch(found->second.exec, streams_[0]));
}

cudaGraphExec_t Tape::Capture() {
  ++statistics_.graphs_made;
  for (const Op& op : ops_) {
    if (op.kind == Op::kKernel) AllowSharedMemory(op.function, op.shared_bytes);
  }
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  CUDA_CHECK(cudaStreamBeginCapture(streams_[0], cudaStreamCaptureModeThreadLocal));
  RunDirectly();
  CUDA_CHECK(cudaStreamEndCapture(streams_[0], &graph));
  // Without being told a graph has its own stream's priority everywhere.
  CUDA_CHECK(cudaGraphInstantiate(&exec, graph, cudaGraphInstantiateFlagUseNodePriority));
  CUDA_CHECK(cudaGraphDestroy(graph));
  return exec;
}

void Tape::Issue(const Op& op) {
  cudaStream_t stream = streams_[op.lane];
  switch (op.kind) {
    case Op::kKernel:
      IssueKernel(op);
      break;
    case Op::kCopy:
      CUDA_CHECK(cudaMemcpyAsync(const_cast<void*>(op.function), op.from, op.bytes,
                                 cudaMemcpyDefault, stream));
      break;
    case Op::kFill:
      CUDA_CHECK(cudaMemsetAsync(const_cast<void*>(op.function), static_cast<int>(op.other),
                                 op.bytes, stream));
      break;
    case Op::kCall:
      calls_[op.other](stream);
      break;
    case Op::kMark:
      CUDA_CHECK(cudaEventRecord(Event(op.other), stream));
      break;
    case Op::kWait:
      CUDA_CHECK(cudaStreamWaitEvent(stream, Event(op.other), 0));
      break;
  }
  if (op.kind != Op::kMark) follows_kernel_[op.lane] = op.kind == Op::kKernel;
}

void Tape::IssueKernel(const Op& op) {
  AllowSharedMemory(op.function, op.shared_bytes);
  std::array<void*, 32> args;
  CHECK_LE(op.args, args.size());
  for (uint32_t i = 0; i < op.args; ++i) {
    args[i] = args_.data() + arg_offsets_[op.first_arg + i];
  }
  std::array<cudaLaunchAttribute, 2> attributes{};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(op.grid[0], op.grid[1], op.grid[2]);
  config.blockDim = dim3(op.block[0], op.block[1], op.block[2]);
  config.dynamicSmemBytes = op.shared_bytes;
  config.stream = streams_[op.lane];
  config.attrs = attributes.data();
  if (early_ && properties_.major >= 9 && follows_kernel_[op.lane]) {
    cudaLaunchAttribute& early = attributes[config.numAttrs++];
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
  }
  if (op.cluster > 1) {
    cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {op.cluster, 1, 1};
  }
  CUDA_CHECK(cudaLaunchKernelExC(&config, op.function, args.data()));
}

cudaEvent_t Tape::Event(uint32_t mark) {
  while (events_.size() <= mark) {
    CUDA_CHECK(cudaEventCreateWithFlags(&events_.emplace_back(), cudaEventDisableTiming));
  }
  return events_[mark];
}

void Tape::AllowSharedMemory(const void* function, uint32_t bytes) {
  if (bytes <= kPlainSharedBytes) return;
  uint32_t& allowed = shared_allowed_[function];
  if (bytes <= allowed) return;
  CUDA_CHECK(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(bytes)));
  // Kernels that use much divide their work by how many fit beside each other.
  CUDA_CHECK(cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout,
                                  cudaSharedmemCarveoutMaxShared));
  allowed = bytes;
}

}  // namespace sparsekv::cuda
