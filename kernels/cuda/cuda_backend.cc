#include <cuda_runtime_api.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/check.h"
#include "kernels/backend.h"
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/tape.h"

namespace sparsekv {
namespace {

// What the oldest code in this build was compiled for.
constexpr int kLeastMajor = 8;

std::string DeviceName() {
  int device = 0;
  cudaDeviceProp properties{};
  CUDA_CHECK(cudaGetDevice(&device));
  CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  return std::string("cuda (") + properties.name + ", " +
         std::to_string(properties.multiProcessorCount) + " multiprocessors)";
}

// As the kernel says it of the PCI device.
int NodeOfDevice(int device) {
  char bus_id[32]{};
  if (cudaDeviceGetPCIBusId(bus_id, sizeof(bus_id), device) != cudaSuccess) {
    cudaGetLastError();
    return -1;
  }
  std::string path = std::string("/sys/bus/pci/devices/") + bus_id + "/numa_node";
  std::ranges::transform(path, path.begin(), [](unsigned char c) { return std::tolower(c); });
  int node = -1;
  std::ifstream(path) >> node;
  return node;
}

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const CudaOptions& options)
      : name_(DeviceName()),
        tape_(options.graphs, options.early_launch),
        products_(options.exact_prompts) {
    tape_.set_most_shared_bytes(options.most_shared_bytes);
  }

  std::string_view name() const override { return name_; }

  bool host_memory() const override { return false; }
  std::byte* Allocate(size_t bytes) override;
  void Free(std::byte* memory) override { CUDA_CHECK(cudaFree(memory)); }
  size_t free_bytes() const override;
  bool Share(std::byte* host, size_t bytes, std::string* why) override;
  void Unshare(std::byte* host, size_t bytes) override;
  std::byte* AllocateOnLargePages(size_t bytes, std::string* why) override;
  void FreeLargePages(std::byte* memory) override { CUDA_CHECK(cudaFree(memory)); }
  void Upload(void* device, const void* host, size_t bytes) override {
    CHECK(!in_step_);
    // From pageable memory it may return before the bytes are there, and steps run on other
    // streams.
    CUDA_CHECK(cudaMemcpy(device, host, bytes, cudaMemcpyDefault));
    CUDA_CHECK(cudaStreamSynchronize(cudaStreamLegacy));
  }
  void Download(void* host, const void* device, size_t bytes) override {
    CHECK(!in_step_);
    CUDA_CHECK(cudaMemcpy(host, device, bytes, cudaMemcpyDefault));
  }
  void Copy(void* to, const void* from, size_t bytes) override {
    Do([&] { cuda::CopyBytes(to, from, bytes, tape_); });
  }
  void Fill(void* to, uint8_t byte, size_t bytes) override {
    Do([&] { tape_.Fill(to, byte, bytes); });
  }
  void Fetch(void* host, const void* device, size_t bytes) override {
    Do([&] { tape_.Fetch(host, device, bytes); });
  }

  void Reserve(size_t bytes) override { tape_.ReserveScratch(bytes); }
  void set_progress(std::function<void()> progress) override {
    tape_.set_progress(std::move(progress));
  }
  void BeginStep(StepKind kind) override;
  void EndStep() override;
  StepWork decode_work() const override { return tape_.statistics().decode; }
  void UseLane(Lane lane) override { tape_.UseLane(lane); }
  uint32_t Mark() override { return tape_.Mark(); }
  void WaitFor(uint32_t mark) override { tape_.WaitFor(mark); }

  void Embed(const EmbedArgs& args) override { Run(cuda::Embed, args); }
  void RmsNorm(const RmsNormArgs& args) override { Run(cuda::RmsNorm, args); }
  void Linear(const LinearArgs& args) override {
    Do([&] { few() ? cuda::LinearFew(args, tape_) : products_.Linear(args, tape_); });
  }
  void SwiGlu(const SwiGluArgs& args) override { Run(cuda::SwiGlu, args); }
  void Rope(const RopeArgs& args) override { Run(cuda::Rope, args); }
  void AppendRows(const AppendRowsArgs& args) override { Run(cuda::AppendRows, args); }
  void AppendLabels(const AppendLabelsArgs& args) override { Run(cuda::AppendLabels, args); }
  void ScoreLabels(const ScoreLabelsArgs& args) override { Run(cuda::ScoreLabels, args); }
  void Select(const SelectArgs& args) override { Run(cuda::Select, args); }
  void Attend(const AttendArgs& args) override {
    CHECK_EQ(args.window, 0u);
    Do([&] { cuda::Attend(args, selected_, tape_); });
  }
  void Extrapolate(const ExtrapolateArgs& args) override { Run(cuda::Extrapolate, args); }
  void ExpandQuery(const ExpandQueryArgs& args) override { Run(cuda::ExpandQuery, args); }
  void Cosine(const CosineArgs& args) override { Run(cuda::Cosine, args); }
  void Resolve(const ResolveArgs& args) override { Run(cuda::Resolve, args); }
  void Forget(const ForgetArgs& args) override { Run(cuda::Forget, args); }
  void CopyRows(const CopyRowsArgs& args) override { Run(cuda::CopyRows, args); }
  void CopyAhead(const CopyAheadArgs& args) override { Run(cuda::CopyAhead, args); }
  void ForgetRest(const ForgetRestArgs& args) override { Run(cuda::ForgetRest, args); }
  void Overlap(const OverlapArgs& args) override { Run(cuda::Overlap, args); }
  void Project(const ProjectArgs& args) override {
    Do([&] { few() ? cuda::ProjectFew(args, tape_) : products_.Project(args, tape_); });
  }
  void GateUp(const GateUpArgs& args) override {
    Do([&] { few() ? cuda::GateUpFew(args, tape_) : products_.GateUp(args, tape_); });
  }
  void RotateAppend(const RotateAppendArgs& args) override { Run(cuda::RotateAppend, args); }
  void ScoreSelect(const ScoreLabelsArgs& score, const SelectArgs& select) override {
    Do([&] {
      if (cuda::ScoreSelect(score, select, tape_, &selected_)) return;
      cuda::ScoreLabels(score, tape_);
      cuda::Select(select, tape_);
    });
  }
  SampledToken Sample(const SampleArgs& args) override;
  void Sample(std::span<const SampleArgs> args, SampledToken* tokens) override;

 private:
  bool few() const { return in_step_ && tape_.kind() == StepKind::kDecode; }

  // Inside a step `note` only notes; outside, the operation is a step of its own.
  template <typename Note>
  void Do(const Note& note) {
    if (in_step_) return note();
    tape_.Begin(StepKind::kPrompt);
    note();
    tape_.Finish();
  }
  template <typename Args>
  void Run(void (*operation)(const Args&, cuda::Tape&), const Args& args) {
    Do([&] { operation(args, tape_); });
  }

  std::string name_;
  std::set<std::byte*> pageable_;  // shared without being registered
  cuda::Tape tape_;
  cuda::SelectedRows selected_;
  cuda::PromptProducts products_;
  cuda::Sampler sampler_;
  bool in_step_ = false;
};

std::byte* CudaBackend::Allocate(size_t bytes) {
  CHECK(!in_step_);
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, std::max<size_t>(bytes, 256));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  CUDA_CHECK(error);
  CUDA_CHECK(cudaMemset(memory, 0, bytes));
  CUDA_CHECK(cudaDeviceSynchronize());
  return static_cast<std::byte*>(memory);
}

size_t CudaBackend::free_bytes() const {
  size_t free = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return free;
}

bool CudaBackend::Share(std::byte* host, size_t bytes, std::string* why) {
  const cudaError_t error =
      cudaHostRegister(host, bytes, cudaHostRegisterMapped | cudaHostRegisterPortable);
  void* seen = nullptr;
  if (error == cudaSuccess && cudaHostGetDevicePointer(&seen, host, 0) == cudaSuccess &&
      seen == host) {
    return true;
  }
  *why = error != cudaSuccess ? cudaGetErrorString(error)
                              : "the device has another address for host memory";
  cudaGetLastError();
  if (error == cudaSuccess) CUDA_CHECK(cudaHostUnregister(host));
  // Some drivers let a device use any memory of the process, page by page.
  if (!tape_.properties().pageableMemoryAccess) return false;
  pageable_.insert(host);
  return true;
}

void CudaBackend::Unshare(std::byte* host, size_t) {
  if (pageable_.erase(host) == 0) CUDA_CHECK(cudaHostUnregister(host));
}

// Managed memory that stays where the device is near: of all kinds of host memory the only one that
// drivers were seen to map in large pages (tests/gpu/ceilings_pages.cuh).
std::byte* CudaBackend::AllocateOnLargePages(size_t bytes, std::string* why) {
  int device = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  if (!tape_.properties().concurrentManagedAccess) {
    *why = "it has no managed memory that both use at once";
    return nullptr;
  }
  const int node = NodeOfDevice(device);
  const cudaMemLocation near = {node < 0 ? cudaMemLocationTypeHost : cudaMemLocationTypeHostNuma,
                                std::max(node, 0)};
  const cudaMemLocation host = {cudaMemLocationTypeHost, 0};
  const cudaMemLocation self = {cudaMemLocationTypeDevice, device};
  void* memory = nullptr;
  cudaError_t error = cudaMallocManaged(&memory, bytes);
  if (error == cudaSuccess) {
    // A machine may not let a process choose the node.
    if (cudaMemAdvise(memory, bytes, cudaMemAdviseSetPreferredLocation, near) != cudaSuccess) {
      cudaGetLastError();
      error = cudaMemAdvise(memory, bytes, cudaMemAdviseSetPreferredLocation, host);
    }
    if (error == cudaSuccess) {
      error = cudaMemAdvise(memory, bytes, cudaMemAdviseSetAccessedBy, self);
    }
  }
  if (error == cudaSuccess) return static_cast<std::byte*>(memory);
  *why = cudaGetErrorString(error);
  cudaGetLastError();
  if (memory) CUDA_CHECK(cudaFree(memory));
  return nullptr;
}

void CudaBackend::BeginStep(StepKind kind) {
  CHECK(!in_step_);
  tape_.Begin(kind);
  in_step_ = true;
}

void CudaBackend::EndStep() {
  CHECK(in_step_);
  tape_.Finish();
  in_step_ = false;
  sampler_.Take();
}

void CudaBackend::Sample(std::span<const SampleArgs> args, SampledToken* tokens) {
  Do([&] { sampler_.Note(args, tokens, tape_); });
  if (!in_step_) sampler_.Take();
}

SampledToken CudaBackend::Sample(const SampleArgs& args) {
  CHECK(!in_step_);
  SampledToken token;
  Sample({&args, 1}, &token);
  return token;
}

// One line when the device cannot run this build.
std::string WhyNotDevice(int device) {
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) {
    cudaGetLastError();
    return "CUDA device " + std::to_string(device) + " does not answer";
  }
  if (properties.major >= kLeastMajor) return "";
  return std::string("CUDA device ") + properties.name + " has compute capability " +
         std::to_string(properties.major) + "." + std::to_string(properties.minor) +
         ", this needs " + std::to_string(kLeastMajor) + ".0";
}

}  // namespace

std::string WhyNoCuda() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return std::string("no CUDA device: ") + cudaGetErrorString(error);
  }
  std::string why = "no CUDA device";
  for (int device = 0; device < count; ++device) {
    why = WhyNotDevice(device);
    if (why.empty()) return cuda::WhyNoCublasLt();
  }
  return why;
}

std::vector<CudaDevice> CudaDevices() {
  std::vector<CudaDevice> all;
  int count = 0;
  if (!WhyNoCuda().empty() || cudaGetDeviceCount(&count) != cudaSuccess) return all;
  for (int device = 0; device < count; ++device) {
    size_t free = 0, total = 0;
    if (!WhyNotDevice(device).empty()) continue;
    CUDA_CHECK(cudaSetDevice(device));
    CUDA_CHECK(cudaMemGetInfo(&free, &total));
    all.push_back({device, free, NodeOfDevice(device)});
  }
  return all;
}

namespace {

bool DeviceExists() {
  static const bool exists = WhyNoCuda().empty();
  return exists;
}

}  // namespace

std::unique_ptr<Backend> MakeCudaBackend(const CudaOptions& options, std::string* why) {
  *why = WhyNoCuda();
  if (!why->empty()) return nullptr;
  const int device = options.device < 0 ? CudaDevices().front().ordinal : options.device;
  *why = WhyNotDevice(device);
  if (!why->empty()) return nullptr;
  CUDA_CHECK(cudaSetDevice(device));
  return std::make_unique<CudaBackend>(options);
}

std::byte* AllocateForAll(size_t bytes) {
  void* memory = nullptr;
  if (DeviceExists()) {
    CUDA_CHECK(cudaHostAlloc(&memory, std::max<size_t>(bytes, 1),
                             cudaHostAllocMapped | cudaHostAllocPortable));
    std::fill_n(static_cast<std::byte*>(memory), bytes, std::byte{0});
    return static_cast<std::byte*>(memory);
  }
  memory = std::calloc(std::max<size_t>(bytes, 1), 1);
  CHECK(memory != nullptr);
  return static_cast<std::byte*>(memory);
}

void FreeForAll(std::byte* memory) {
  if (DeviceExists()) {
    CUDA_CHECK(cudaFreeHost(memory));
  } else {
    std::free(memory);
  }
}

}  // namespace sparsekv
