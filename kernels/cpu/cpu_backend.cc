#include <sched.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/operations.h"
#include "kernels/plain.h"

namespace sparsekv {
namespace {

// One thread per core that the process may run on.
unsigned AllowedCores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return 1;
  const int count = CPU_COUNT(&allowed);
  return count < 1 ? 1u : static_cast<unsigned>(count);
}

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(unsigned threads)
      : context_(threads),
        name_("cpu (" + cpu::InstructionSet() + ", " + std::to_string(threads) +
              (threads == 1 ? " thread)" : " threads)")) {}

  std::string_view name() const override { return name_; }

  void Embed(const EmbedArgs& args) override { cpu::Embed(args, context_); }
  void RmsNorm(const RmsNormArgs& args) override { cpu::RmsNorm(args, context_); }
  void Linear(const LinearArgs& args) override { cpu::Linear(args, context_); }
  void Project(const ProjectArgs& args) override {
    RmsNorm({.x = args.x,
             .tokens = args.tokens,
             .weight = args.norm,
             .epsilon = args.epsilon,
             .out = args.normed});
    std::vector<LinearArgs> products;
    for (const ProjectArgs::Output& output : args.outputs) {
      products.push_back(
          {.x = args.normed, .tokens = args.tokens, .weight = output.weight, .y = output.y});
    }
    cpu::LinearOfOne(products, context_);
  }
  void SwiGlu(const SwiGluArgs& args) override { cpu::SwiGlu(args, context_); }
  void Rope(const RopeArgs& args) override { rotation_.Apply(args, context_); }
  void AppendRows(const AppendRowsArgs& args) override { cpu::AppendRows(args, context_); }
  void AppendLabels(const AppendLabelsArgs& args) override { cpu::AppendLabels(args, context_); }
  void ScoreLabels(const ScoreLabelsArgs& args) override { cpu::ScoreLabels(args, context_); }
  void Select(const SelectArgs& args) override { cpu::Select(args, context_); }
  void ScoreSelect(const ScoreLabelsArgs& score, const SelectArgs& select) override {
    if (!cpu::ScoreSelect(score, select, context_)) Backend::ScoreSelect(score, select);
  }
  void Attend(const AttendArgs& args) override { cpu::Attend(args, context_); }
  void Extrapolate(const ExtrapolateArgs& args) override { cpu::Extrapolate(args, context_); }
  void ExpandQuery(const ExpandQueryArgs& args) override { cpu::ExpandQuery(args, context_); }
  void Cosine(const CosineArgs& args) override { cpu::Cosine(args, context_); }
  void RowMass(const RowMassArgs& args) override { cpu::RowMass(args, context_); }
  void CountScores(const ScoreHistogramArgs& args) override { cpu::CountScores(args, context_); }
  void Resolve(const ResolveArgs& args) override { cpu::Resolve(args, context_); }
  void CopyRows(const CopyRowsArgs& args) override { cpu::CopyRows(args, context_); }
  void Forget(const ForgetArgs& args) override { plain::Forget(args); }
  void CopyAhead(const CopyAheadArgs& args) override { plain::CopyAhead(args); }
  void ForgetRest(const ForgetRestArgs& args) override { plain::ForgetRest(args); }
  void Overlap(const OverlapArgs& args) override { plain::Overlap(args); }
  using Backend::Sample;
  SampledToken Sample(const SampleArgs& args) override { return cpu::Sample(args, context_); }

 private:
  cpu::Context context_;
  cpu::Rotation rotation_;
  std::string name_;
};

}  // namespace

std::unique_ptr<Backend> MakeCpuBackend(unsigned threads) {
  return std::make_unique<CpuBackend>(threads == 0 ? AllowedCores() : threads);
}

}  // namespace sparsekv
