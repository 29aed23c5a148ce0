#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/attention.h"
#include "kernels/bias.h"
#include "kernels/copy_ahead.h"
#include "kernels/hot_rows.h"
#include "kernels/labels.h"
#include "kernels/matrix.h"
#include "kernels/predict.h"
#include "kernels/project.h"
#include "kernels/rope.h"
#include "kernels/rotate_append.h"
#include "kernels/row_mass.h"
#include "kernels/rows.h"
#include "kernels/sample.h"
#include "kernels/score_histogram.h"
#include "kernels/select.h"
#include "kernels/step.h"

namespace sparsekv {

// The operations of the forward pass. One instance belongs to one thread (the worker's device
// thread), which calls in program order. Every operation keeps the invariance rule: what it
// computes for a token depends on that token's inputs alone, to the bit, whatever the batch, the
// token's place in it, the chunk or the number of threads.
//
// Argument structs, the spans in them and the layouts that they point to are read during the call.
// Every other pointer, those inside tables too, is memory of the backend's device, or memory that
// the device was given with Share.
//
// Outside of a step an operation is complete when it returns. Between BeginStep and EndStep a
// device may only note it; EndStep runs all of them and returns when they are complete. So nothing
// inside a step may look at a result.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;  // e.g. "reference", "cpu (AVX2, 2 threads)"

  // Whether the device's memory is the host's own, which both read at any time.
  virtual bool host_memory() const { return true; }
  // Memory of the device, zeroed, aligned to 256 bytes; null when there is not so much.
  virtual std::byte* Allocate(size_t bytes);
  virtual void Free(std::byte* memory);
  virtual size_t free_bytes() const;  // that Allocate could still give; SIZE_MAX = not limited here
  // Host memory that operations may be given from now on; false, with one line in `why`, when the
  // device cannot read it where it lies. True with a line in `why`: it can, but slower than it
  // should. Unshare it before it goes away, by the same addresses.
  virtual bool Share(std::byte* host, size_t bytes, std::string* why);
  virtual void Unshare(std::byte* host, size_t bytes);
  // Host memory of this process alone that the device maps in large pages: what it reads there at
  // random costs it no walk through its page tables each, which shared memory does
  // (kernels/README.md). Shared from the start; the machine gives it when it is touched. Null, with
  // one line in `why`: there is none.
  virtual std::byte* AllocateOnLargePages(size_t bytes, std::string* why);
  virtual void FreeLargePages(std::byte* memory);
  // Between the host's memory and the device's; outside of steps only.
  virtual void Upload(void* device, const void* host, size_t bytes);
  virtual void Download(void* host, const void* device, size_t bytes);
  // Inside the device, like an operation.
  virtual void Copy(void* to, const void* from, size_t bytes);
  virtual void Fill(void* to, uint8_t byte, size_t bytes);
  // To host memory when the step ends, like an operation.
  virtual void Fetch(void* host, const void* device, size_t bytes);

  // Memory for what operations keep between their own parts, so that none is taken later.
  virtual void Reserve(size_t bytes) { (void)bytes; }
  // Called now and then while EndStep waits for a long step.
  virtual void set_progress(std::function<void()>) {}

  virtual void BeginStep(StepKind) {}
  virtual void EndStep() {}
  virtual StepWork decode_work() const { return {}; }
  // Inside a step: what follows goes to that lane. A step begins on kCompute, and ends when all
  // lanes are done.
  virtual void UseLane(Lane) {}
  // A point of the lane in use, after all it was given so far, and the lane in use waits for one.
  virtual uint32_t Mark() { return 0; }
  virtual void WaitFor(uint32_t mark) { (void)mark; }

  virtual void Embed(const EmbedArgs& args) = 0;
  virtual void RmsNorm(const RmsNormArgs& args) = 0;
  virtual void Linear(const LinearArgs& args) = 0;
  virtual void SwiGlu(const SwiGluArgs& args) = 0;
  virtual void Rope(const RopeArgs& args) = 0;
  virtual void AppendRows(const AppendRowsArgs& args) = 0;
  virtual void AppendLabels(const AppendLabelsArgs& args) = 0;
  virtual void ScoreLabels(const ScoreLabelsArgs& args) = 0;
  virtual void Select(const SelectArgs& args) = 0;
  virtual void Attend(const AttendArgs& args) = 0;
  virtual void Extrapolate(const ExtrapolateArgs& args) = 0;
  virtual void ExpandQuery(const ExpandQueryArgs& args) = 0;
  virtual void Cosine(const CosineArgs& args) = 0;
  virtual void Resolve(const ResolveArgs& args) = 0;
  virtual void Forget(const ForgetArgs& args) = 0;
  virtual void CopyRows(const CopyRowsArgs& args) = 0;
  virtual void CopyAhead(const CopyAheadArgs& args) = 0;
  virtual void ForgetRest(const ForgetRestArgs& args) = 0;
  virtual void Overlap(const OverlapArgs& args) = 0;
  virtual SampledToken Sample(const SampleArgs& args) = 0;
  // Where the device's memory is the host's, and nowhere else:
  virtual void RowMass(const RowMassArgs& args);
  virtual void CountScores(const ScoreHistogramArgs& args);

  // Several of these in one; composed of them where a backend has no better way.
  virtual void Project(const ProjectArgs& args);
  virtual void GateUp(const GateUpArgs& args);
  virtual void AddBias(const AddBiasArgs& args);  // where the device's memory is the host's
  virtual void RotateAppend(const RotateAppendArgs& args);
  // ScoreLabels, then Select of the same items; the scores may or may not be written.
  virtual void ScoreSelect(const ScoreLabelsArgs& score, const SelectArgs& select);
  // Of several sequences; `tokens` [args.size()] are there when the step ends.
  virtual void Sample(std::span<const SampleArgs> args, SampledToken* tokens);
};

// Slow and obvious: the specification that the others are compared with.
std::unique_ptr<Backend> MakeReferenceBackend();

// SIMD chosen at run time, `threads` threads with the caller's (0 = one per core of the process's
// affinity mask).
std::unique_ptr<Backend> MakeCpuBackend(unsigned threads);

// A CUDA device. Steps of kDecode are kept as graphs unless `graphs` is off, which changes
// no result. Null, with one line in `why`, when this build has no CUDA, or this machine no driver
// or no device that can run it. A call that fails later ends the process (kernels/cuda/check.h).
std::string WhyNoCuda();  // "" = MakeCudaBackend will make one
struct CudaDevice {
  int ordinal = 0;
  size_t free_bytes = 0;
  int node = -1;  // of the machine, that it is attached to; -1 = not known
};
std::vector<CudaDevice> CudaDevices();  // that can run this build
struct CudaOptions {
  int device = -1;  // ordinal; -1 = the first that can run this build
  bool graphs = true;
  bool early_launch = true;  // kernels begin while the one before ends; changes no result
  // The inputs of all products of a prompt keep 16 bits, as in decode steps: for comparing with a
  // backend that rounds none. Twice their FLOPs, but for q, k, v and logits, which always do.
  bool exact_prompts = false;
  // Of a CTA of the products of few tokens, as if the device had no more; changes no result.
  size_t most_shared_bytes = SIZE_MAX;
};
std::unique_ptr<Backend> MakeCudaBackend(const CudaOptions& options, std::string* why);

// Memory that the host and every device of this machine can use, zeroed: for tests, which compare
// backends on the same buffers. Null is never returned.
std::byte* AllocateForAll(size_t bytes);
void FreeForAll(std::byte* memory);

}  // namespace sparsekv
