#include "coordinator/tokenizer/pre_tokenizer.h"

#include <utility>

#include "base/check.h"
#include "base/concat.h"
#include "coordinator/tokenizer/strings.h"

namespace sparsekv::tokenizer {

PreTokenizer::PreTokenizer(std::vector<PreTokenizerStep> steps) : steps_(std::move(steps)) {
  for (const PreTokenizerStep& step : steps_) {
    if (const auto* split = std::get_if<SplitStep>(&step)) CHECK(split->regex != nullptr);
    if (const auto* metaspace = std::get_if<MetaspaceStep>(&step)) CHECK(!metaspace->mark.empty());
  }
}

absl::Status PreTokenizer::Run(std::string_view text, bool at_start, Sink sink) const {
  if (text.empty()) return absl::OkStatus();
  return RunFrom(0, text, at_start, sink);
}

absl::Status PreTokenizer::RunFrom(size_t step, std::string_view piece, bool at_start,
                                   Sink sink) const {
  if (step == steps_.size()) return sink(piece);
  if (const auto* split = std::get_if<SplitStep>(&steps_[step])) {
    absl::StatusOr<std::vector<std::string_view>> parts = Split(*split, piece);
    if (!parts.ok()) return parts.status();
    for (const std::string_view part : *parts) {
      const bool part_at_start = at_start && part.data() == piece.data();
      absl::Status status = RunFrom(step + 1, part, part_at_start, sink);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }
  if (std::holds_alternative<PrefixSpaceStep>(steps_[step])) {
    if (piece.starts_with(' ')) return RunFrom(step + 1, piece, at_start, sink);
    return RunFrom(step + 1, Concat(" ", piece), at_start, sink);
  }
  const auto& metaspace = std::get<MetaspaceStep>(steps_[step]);
  std::string marked = ReplaceAll(piece, " ", metaspace.mark);
  const bool prepend = metaspace.prepend == MetaspaceStep::Prepend::kAlways ||
                       (metaspace.prepend == MetaspaceStep::Prepend::kFirst && at_start);
  if (prepend && !marked.starts_with(metaspace.mark)) marked.insert(0, metaspace.mark);
  return RunFrom(step + 1, marked, at_start, sink);
}

}  // namespace sparsekv::tokenizer
