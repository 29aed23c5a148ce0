#pragma once

#include <span>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/thread_pool.h"

// The operations of the CPU backend, one file per noun. Each splits its work into tasks for the
// pool; what a task computes does not depend on which thread runs it.
namespace sparsekv::cpu {

struct Context {
  explicit Context(unsigned threads) : pool(threads), scratch(threads), shared(2) {}

  ThreadPool pool;
  Scratch scratch;  // a buffer per thread
  Scratch shared;   // buffers for what all tasks of an operation read or write
};

// The instruction set that the operations run with, e.g. "AVX2".
std::string InstructionSet();

void Embed(const EmbedArgs& args, Context& context);
void RmsNorm(const RmsNormArgs& args, Context& context);
void Linear(const LinearArgs& args, Context& context);
// Of Encoding::kInt4 and kInt8; several products of the same x at once.
void LinearInt(std::span<const LinearArgs> args, Context& context);
// Products of the same x, at once where that is faster; the bits are those of each by itself.
void LinearOfOne(std::span<const LinearArgs> args, Context& context);
void LinearFp8(const LinearArgs& args, Context& context);  // of Encoding::kFp8
void SwiGlu(const SwiGluArgs& args, Context& context);
void AppendRows(const AppendRowsArgs& args, Context& context);
void AppendLabels(const AppendLabelsArgs& args, Context& context);
void ScoreLabels(const ScoreLabelsArgs& args, Context& context);
void Select(const SelectArgs& args, Context& context);
// False, and nothing done: the two operations one after the other are better here.
bool ScoreSelect(const ScoreLabelsArgs& score, const SelectArgs& select, Context& context);
void Attend(const AttendArgs& args, Context& context);
void Extrapolate(const ExtrapolateArgs& args, Context& context);
void ExpandQuery(const ExpandQueryArgs& args, Context& context);
void Cosine(const CosineArgs& args, Context& context);
void RowMass(const RowMassArgs& args, Context& context);
void CountScores(const ScoreHistogramArgs& args, Context& context);
void Resolve(const ResolveArgs& args, Context& context);
void CopyRows(const CopyRowsArgs& args, Context& context);
SampledToken Sample(const SampleArgs& args, Context& context);

// Keeps the cosines and sines of the last positions: a step rotates the queries and keys of every
// layer by the same angles.
class Rotation {
 public:
  void Apply(const RopeArgs& args, Context& context);

 private:
  void MakeTable(const RopeArgs& args, Context& context);

  std::vector<uint32_t> positions_;
  std::vector<float> inverse_frequency_;
  std::vector<float> table_;  // [positions][cosines of head_dim/2 | sines of head_dim/2]
};

}  // namespace sparsekv::cpu
