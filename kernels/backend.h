#pragma once

#include <memory>
#include <string_view>

#include "kernels/attention.h"
#include "kernels/hot_rows.h"
#include "kernels/labels.h"
#include "kernels/matrix.h"
#include "kernels/predict.h"
#include "kernels/rope.h"
#include "kernels/rows.h"
#include "kernels/sample.h"
#include "kernels/select.h"

namespace sparsekv {

// The operations of the forward pass. One instance belongs to one thread (the worker's device
// thread), which calls in program order; results are complete in program order too. Pointers are
// memory of the backend's device. Every operation keeps the invariance rule: what it computes for a
// token depends on that token's inputs alone, to the bit, whatever the batch, the token's place in
// it, the chunk or the number of threads.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;  // e.g. "reference", "cpu (AVX2, 2 threads)"

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
  virtual SampledToken Sample(const SampleArgs& args) = 0;
};

// Slow and obvious: the specification that the others are compared with.
std::unique_ptr<Backend> MakeReferenceBackend();

// SIMD chosen at run time, `threads` threads with the caller's (0 = one per core of the process's
// affinity mask).
std::unique_ptr<Backend> MakeCpuBackend(unsigned threads);

}  // namespace sparsekv
