#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <span>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/cuda/check.h"
#include "kernels/step.h"

namespace sparsekv::cuda {

// A step as data: kernels with their grids and arguments, on the lanes of a step, noted first and
// run together. What changes from step to step (positions, counts, lists of items) is put into the
// step's parameter block, which one copy brings to the device before the first kernel; what is
// given to a kernel by value is part of the step's shape. Steps of the same shape are the same
// graph, found by a hash over all that was noted. So a graph can never run with an old argument:
// another argument is another shape.
//
// Early launch (compute capability 9.0, off with `early` false): where a kernel follows a kernel on
// its lane and waits for no other, the device may place its CTAs while the one before still runs.
// They wait in BeginKernel (begin_kernel.cuh), or for the rows they need (rows_done.cuh), so that
// no result depends on it.
//
// Lane::kCompute has the least priority, the other lanes the greatest, in graphs too.
//
// Hence the rule for operations: grids and arguments by value may depend on the model and on the
// number of items, not on positions. A kernel that has more or less to do reads that from its
// parameters and strides over a fixed grid. Scoring and selecting in one kernel has few grids, by
// the power of two that the longest row needs: a step that crosses one is captured anew. So is one
// whose selected lists stop or begin to have equally many splits (AttendFew: two shapes).
//
// Belongs to the device thread. Device memory: kParamBytes and what Reserve took; pinned host
// memory: kParamBytes and kResultBytes.
class Tape {
 public:
  static constexpr size_t kParamBytes = size_t{32} << 20;
  static constexpr size_t kResultBytes = size_t{8} << 20;
  static constexpr size_t kMostGraphs = 256;

  explicit Tape(bool graphs, bool early = true);
  ~Tape();
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  int multiprocessors() const { return properties_.multiProcessorCount; }
  const cudaDeviceProp& properties() const { return properties_; }
  // That a CTA may have: what the device allows, or less where a smaller device is to be tried (by
  // operations that choose between shapes by it).
  size_t most_shared_bytes() const {
    return std::min(most_shared_bytes_, properties_.sharedMemPerBlockOptin);
  }
  void set_most_shared_bytes(size_t bytes) { most_shared_bytes_ = bytes; }

  // Forgets what was noted.
  void Begin(StepKind kind);
  // Runs what was noted and waits for it.
  void Finish();
  StepKind kind() const { return kind_; }
  // Grows with every step and whatever is noted.
  uint64_t noted() const { return noted_; }
  Lane lane() const { return lane_; }
  // Called now and then while Finish waits for a prompt's step, which may be long.
  void set_progress(std::function<void()> progress) { progress_ = std::move(progress); }

  // Copies values into the parameter block; where kernels will find them, aligned to 16 bytes.
  template <typename T>
  const T* Params(std::span<const T> values) {
    static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= 16);
    return static_cast<const T*>(PutParams(values.data(), values.size_bytes()));
  }
  template <typename T>
  const T* Params(const std::vector<T>& values) {
    return Params(std::span<const T>(values));
  }
  template <typename T>
  const T* Param(const T& value) {
    return Params(std::span<const T>(&value, 1));
  }

  template <typename... P, typename... A>
  void Launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, const A&... args) {
    LaunchClusters(1, kernel, grid, block, shared_bytes, args...);
  }
  // In clusters of so many CTAs that are neighbours in x; 1: as the kernel is declared.
  template <typename... P, typename... A>
  void LaunchClusters(uint32_t ctas, void (*kernel)(P...), dim3 grid, dim3 block,
                      size_t shared_bytes, const A&... args) {
    static_assert(sizeof...(P) == sizeof...(A));
    Op& op = Note(Op::kKernel);
    op.function = reinterpret_cast<const void*>(kernel);
    op.grid = {grid.x, grid.y, grid.z};
    op.block = {block.x, block.y, block.z};
    op.shared_bytes = static_cast<uint32_t>(shared_bytes);
    op.cluster = static_cast<uint16_t>(ctas);
    op.first_arg = static_cast<uint32_t>(arg_offsets_.size());
    op.args = sizeof...(A);
    (PutArg<P>(static_cast<P>(args)), ...);
  }
  // Inside the device, and to the host's memory, where the bytes are once Finish returned.
  void Copy(void* to, const void* from, size_t bytes);
  void Fill(void* to, uint8_t byte, size_t bytes);
  void Fetch(void* host, const void* device, size_t bytes);
  // A library's calls. Only in steps that are no graphs (StepKind::kPrompt).
  void Call(std::function<void(cudaStream_t)> call);

  void UseLane(Lane lane) { lane_ = lane; }
  // A point of the lane in use; the lane in use waits for one. A wait that follows from earlier
  // ones is not noted: a kernel after a wait cannot begin early.
  uint32_t Mark();
  void WaitFor(uint32_t mark);

  // Device memory that operations may use between two of their own kernels, on one lane: `bytes` of
  // the lane's buffer from its start. (ScoreSelect takes none where it is one kernel: attention
  // that begins beside it has it.) Grows outside of graphs only: REQUIRES that Reserve was called
  // with the most that any step needs, where allocation after the start is to be avoided.
  std::byte* Scratch(size_t bytes);
  void ReserveScratch(size_t bytes);

  struct Statistics {
    uint64_t steps = 0, graphs_made = 0, graph_steps = 0;
    StepWork decode;
  };
  const Statistics& statistics() const { return statistics_; }

 private:
  // One thing noted. Plain bytes without padding, so that it can be hashed.
  struct Op {
    enum Kind : uint32_t { kKernel, kCopy, kFill, kCall, kMark, kWait };
    const void* function = nullptr;  // or the copy's target
    const void* from = nullptr;
    std::array<uint32_t, 3> grid{}, block{};
    uint32_t shared_bytes = 0;
    uint32_t first_arg = 0, args = 0;
    Kind kind = kKernel;
    uint16_t lane = 0;
    uint16_t cluster = 1;  // CTAs
    uint32_t other = 0;    // kMark, kWait: the mark; kFill: the byte; kCall: which
    uint64_t bytes = 0;
  };
  static_assert(std::has_unique_object_representations_v<Op>);

  Op& Note(Op::Kind kind);
  const void* PutParams(const void* values, size_t bytes);
  template <typename T>
  void PutArg(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    const size_t offset = (args_.size() + alignof(T) - 1) / alignof(T) * alignof(T);
    args_.resize(offset + sizeof(T));
    std::memcpy(args_.data() + offset, &value, sizeof(T));
    arg_offsets_.push_back(static_cast<uint32_t>(offset));
  }
  uint64_t Shape() const;
  void RunDirectly();
  void Wait();
  void RunGraph();
  cudaGraphExec_t Capture();
  cudaEvent_t Event(uint32_t mark);
  bool Uses(uint32_t lane) const;
  void Issue(const Op& op);
  void IssueKernel(const Op& op);
  void AllowSharedMemory(const void* function, uint32_t bytes);

  const bool graphs_, early_;
  size_t most_shared_bytes_ = SIZE_MAX;
  cudaDeviceProp properties_{};
  cudaStream_t streams_[kLanes]{};
  bool follows_kernel_[kLanes]{};    // what is issued next, and nothing but a kernel
  std::vector<cudaEvent_t> events_;  // by mark; the first are the lanes' begin and ends

  std::function<void()> progress_;
  StepKind kind_ = StepKind::kPrompt;
  uint64_t noted_ = 0;
  Lane lane_ = Lane::kCompute;
  std::vector<Op> ops_;
  std::vector<std::byte> args_;
  std::vector<uint32_t> arg_offsets_;
  std::vector<std::function<void(cudaStream_t)>> calls_;
  uint32_t marks_ = 0;
  // By lane: the last mark of each lane, plus one, that is surely over; as it was at each mark.
  using Seen = std::array<uint32_t, kLanes>;
  struct Point {
    Lane lane;
    Seen seen;
  };
  std::array<Seen, kLanes> seen_{};
  std::vector<Point> points_;  // by mark, from the tape's own on

  std::byte* param_host_ = nullptr;  // pinned
  std::byte* param_device_ = nullptr;
  size_t param_used_ = 0;
  std::byte* result_host_ = nullptr;  // pinned
  size_t result_used_ = 0;
  struct Result {
    void* to;
    size_t offset, bytes;
  };
  std::vector<Result> results_;

  std::byte* scratch_[kLanes]{};
  size_t scratch_bytes_[kLanes]{};
  std::vector<std::byte*> old_scratch_;  // of the step in progress

  struct Graph {
    cudaGraphExec_t exec;
    uint64_t last_use;
  };
  std::map<uint64_t, Graph> kept_;
  std::map<const void*, uint32_t> shared_allowed_;
  Statistics statistics_;
};

}  // namespace sparsekv::cuda
