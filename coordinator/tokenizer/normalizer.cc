#include "coordinator/tokenizer/normalizer.h"

#include <utility>

#include "base/check.h"
#include "coordinator/tokenizer/strings.h"

namespace sparsekv::tokenizer {

void ReplaceStep::Apply(std::string* text) const { *text = ReplaceAll(*text, pattern, content); }

Normalizer::Normalizer(std::vector<NormalizerStep> steps) : steps_(std::move(steps)) {
  for (const NormalizerStep& step : steps_) {
    if (const auto* replace = std::get_if<ReplaceStep>(&step)) CHECK(!replace->pattern.empty());
  }
}

std::string Normalizer::Apply(std::string_view text) const {
  std::string normal(text);
  for (const NormalizerStep& step : steps_) {
    if (const auto* prepend = std::get_if<PrependStep>(&step)) {
      if (!normal.empty()) normal.insert(0, prepend->text);
    } else {
      std::get<ReplaceStep>(step).Apply(&normal);
    }
  }
  return normal;
}

}  // namespace sparsekv::tokenizer
