#pragma once

#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/rows_done.h"
#include "kernels/cuda/tape.h"

// The operations of the CUDA backend, one file per noun. Each notes its kernels on the tape.
namespace sparsekv::cuda {

void Embed(const EmbedArgs& args, Tape& tape);
void RmsNorm(const RmsNormArgs& args, Tape& tape);
// Products of few tokens, for kDecode: the weights are streamed once.
void LinearFew(const LinearArgs& args, Tape& tape);
void ProjectFew(const ProjectArgs& args, Tape& tape);
void GateUpFew(const GateUpArgs& args, Tape& tape);
// Products of a prompt's chunk, for kPrompt: cuBLASLt.
class PromptProducts {
 public:
  // exact: in Linear and GateUp too x is the sum of two numbers, as in Project. Weights of float32
  // take x as it is.
  explicit PromptProducts(bool exact);
  ~PromptProducts();
  // x is rounded to the weights' type, unless exact.
  void Linear(const LinearArgs& args, Tape& tape);
  // x is the sum of two numbers of that type, a product each, as in decode steps: what attention
  // compares and what logits are made of must not depend on 8 bits.
  void Project(const ProjectArgs& args, Tape& tape);
  // x as for Linear: half of a layer's FLOPs are here.
  void GateUp(const GateUpArgs& args, Tape& tape);

 private:
  struct Library;
  void Multiply(const LinearArgs& args, bool both_halves, Tape& tape);
  const bool exact_;
  std::unique_ptr<Library> library_;
};
// What ProjectArgs and GateUpArgs begin with, to args.normed.
template <typename Args>
void NormFirst(const Args& args, Tape& tape) {
  RmsNorm({.x = args.x,
           .tokens = args.tokens,
           .weight = args.norm,
           .epsilon = args.epsilon,
           .out = args.normed},
          tape);
}
void SwiGlu(const SwiGluArgs& args, Tape& tape);
void Rope(const RopeArgs& args, Tape& tape);
void RotateAppend(const RotateAppendArgs& args, Tape& tape);
void AppendRows(const AppendRowsArgs& args, Tape& tape);
void AppendLabels(const AppendLabelsArgs& args, Tape& tape);
void ScoreLabels(const ScoreLabelsArgs& args, Tape& tape);
void Select(const SelectArgs& args, Tape& tape);
// Both in one kernel, the scores never in memory. False, and no kernel noted, where that does not
// apply: softmax mass, sums of codes, codes of groups over 8 or of too many channels, rows too long
// (CtasOfRow), a device without clusters or with less shared memory. `selected`: for Attend.
bool ScoreSelect(const ScoreLabelsArgs& score, const SelectArgs& select, Tape& tape,
                 SelectedRows* selected);
// Items of one token: split over their list. Items of more, in kPrompt: tiles of query tokens.
// `selected`: of the last ScoreSelect; where these are its lists and its kernel is the last one,
// attention begins before all of them are there.
void Attend(const AttendArgs& args, const SelectedRows& selected, Tape& tape);
void Extrapolate(const ExtrapolateArgs& args, Tape& tape);
void ExpandQuery(const ExpandQueryArgs& args, Tape& tape);
void Cosine(const CosineArgs& args, Tape& tape);
void Overlap(const OverlapArgs& args, Tape& tape);
void Resolve(const ResolveArgs& args, Tape& tape);
void Forget(const ForgetArgs& args, Tape& tape);
void CopyRows(const CopyRowsArgs& args, Tape& tape);
// As Tape::Copy, but a kernel where the bytes are few: what follows it may begin early.
void CopyBytes(void* to, const void* from, size_t bytes, Tape& tape);
void CopyAhead(const CopyAheadArgs& args, Tape& tape);
void ForgetRest(const ForgetRestArgs& args, Tape& tape);
// Draws tokens; `tokens` [args.size()] are filled by Take, once the tape has run.
class Sampler {
 public:
  Sampler();
  ~Sampler();
  void Note(std::span<const SampleArgs> args, SampledToken* tokens, Tape& tape);
  void Take();

 private:
  struct Pending;
  std::vector<std::unique_ptr<Pending>> pending_;
};

}  // namespace sparsekv::cuda
