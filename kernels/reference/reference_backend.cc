#include <memory>
#include <string_view>

#include "kernels/backend.h"
#include "kernels/plain.h"
#include "kernels/reference/operations.h"

namespace sparsekv {
namespace {

class ReferenceBackend final : public Backend {
 public:
  std::string_view name() const override { return "reference"; }

  void Embed(const EmbedArgs& args) override { reference::Embed(args); }
  void RmsNorm(const RmsNormArgs& args) override { reference::RmsNorm(args); }
  void Linear(const LinearArgs& args) override { reference::Linear(args); }
  void SwiGlu(const SwiGluArgs& args) override { reference::SwiGlu(args); }
  void Rope(const RopeArgs& args) override { reference::Rope(args); }
  void AppendRows(const AppendRowsArgs& args) override { reference::AppendRows(args); }
  void AppendLabels(const AppendLabelsArgs& args) override { reference::AppendLabels(args); }
  void ScoreLabels(const ScoreLabelsArgs& args) override { reference::ScoreLabels(args); }
  void Select(const SelectArgs& args) override { reference::Select(args); }
  void Attend(const AttendArgs& args) override { reference::Attend(args); }
  void Extrapolate(const ExtrapolateArgs& args) override { reference::Extrapolate(args); }
  void ExpandQuery(const ExpandQueryArgs& args) override { reference::ExpandQuery(args); }
  void Cosine(const CosineArgs& args) override { reference::Cosine(args); }
  void RowMass(const RowMassArgs& args) override { reference::RowMass(args); }
  void CountScores(const ScoreHistogramArgs& args) override { reference::CountScores(args); }
  void Resolve(const ResolveArgs& args) override { reference::Resolve(args); }
  void CopyRows(const CopyRowsArgs& args) override { reference::CopyRows(args); }
  void Forget(const ForgetArgs& args) override { plain::Forget(args); }
  void CopyAhead(const CopyAheadArgs& args) override { plain::CopyAhead(args); }
  void ForgetRest(const ForgetRestArgs& args) override { plain::ForgetRest(args); }
  void Overlap(const OverlapArgs& args) override { plain::Overlap(args); }
  using Backend::Sample;
  SampledToken Sample(const SampleArgs& args) override { return reference::Sample(args); }
};

}  // namespace

std::unique_ptr<Backend> MakeReferenceBackend() { return std::make_unique<ReferenceBackend>(); }

}  // namespace sparsekv
