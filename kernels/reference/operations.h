#pragma once

#include "kernels/backend.h"

// The operations of the reference backend, one file per noun. Slow and obvious on purpose.
namespace sparsekv::reference {

void Embed(const EmbedArgs& args);
void RmsNorm(const RmsNormArgs& args);
void Linear(const LinearArgs& args);
void SwiGlu(const SwiGluArgs& args);
void Rope(const RopeArgs& args);
void AppendRows(const AppendRowsArgs& args);
void AppendLabels(const AppendLabelsArgs& args);
void ScoreLabels(const ScoreLabelsArgs& args);
void Select(const SelectArgs& args);
void Attend(const AttendArgs& args);
void Extrapolate(const ExtrapolateArgs& args);
void ExpandQuery(const ExpandQueryArgs& args);
void Cosine(const CosineArgs& args);
void RowMass(const RowMassArgs& args);
void CountScores(const ScoreHistogramArgs& args);
void Resolve(const ResolveArgs& args);
void CopyRows(const CopyRowsArgs& args);
SampledToken Sample(const SampleArgs& args);

}  // namespace sparsekv::reference
