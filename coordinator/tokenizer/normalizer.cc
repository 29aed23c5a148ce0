#include "coordinator/tokenizer/normalizer.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/concat.h"
#include "coordinator/tokenizer/split.h"
#include "coordinator/tokenizer/strings.h"

namespace sparsekv::tokenizer {
namespace {

constexpr size_t kMaxBytes = Normalizer::kMaxBytes;

absl::Status TooLong() {
  return absl::ResourceExhaustedError(
      Concat("the normalizer makes a text of more than ", kMaxBytes, " bytes"));
}

// An overload for each kind of step.
struct StepRunner {
  std::string* text;

  absl::Status operator()(const PrependStep& step) const {
    if (!text->empty()) text->insert(0, step.text);
    return absl::OkStatus();
  }

  absl::Status operator()(const ReplaceStep& step) const {
    if (step.content.size() > step.pattern.size()) {
      const size_t most = text->size() / step.pattern.size() * step.content.size();
      if (most > kMaxBytes && !FitsAfter(step)) return TooLong();
    }
    step.Apply(text);
    return absl::OkStatus();
  }

  absl::Status operator()(const ReplaceRegexStep& step) const {
    absl::StatusOr<std::vector<Span>> spans = FindSpans(*step.regex, *text);
    if (!spans.ok()) return spans.status();
    std::string replaced;
    for (const Span& span : *spans) {
      replaced += span.is_match ? std::string_view(step.content) : span.text;
      if (replaced.size() > kMaxBytes) return TooLong();
    }
    *text = std::move(replaced);
    return absl::OkStatus();
  }

  absl::Status operator()(UnicodeForm form) const {
    *text = NormalForm(form, *text);
    return absl::OkStatus();
  }

  absl::Status operator()(const LowercaseStep&) const {
    *text = Lowercase(*text);
    return absl::OkStatus();
  }

  absl::Status operator()(const StripAccentsStep&) const {
    *text = StripAccents(*text);
    return absl::OkStatus();
  }

  absl::Status operator()(const StripStep& step) const {
    *text = std::string(StripWhiteSpace(*text, step.left, step.right));
    return absl::OkStatus();
  }

  bool FitsAfter(const ReplaceStep& step) const {
    size_t size = text->size();
    for (size_t at = text->find(step.pattern); at != text->npos;
         at = text->find(step.pattern, at + step.pattern.size())) {
      size += step.content.size() - step.pattern.size();
      if (size > kMaxBytes) return false;
    }
    return true;
  }
};

}  // namespace

void ReplaceStep::Apply(std::string* text) const { *text = ReplaceAll(*text, pattern, content); }

Normalizer::Normalizer(std::vector<NormalizerStep> steps) : steps_(std::move(steps)) {
  for (const NormalizerStep& step : steps_) {
    if (const auto* replace = std::get_if<ReplaceStep>(&step)) CHECK(!replace->pattern.empty());
    if (const auto* replace = std::get_if<ReplaceRegexStep>(&step))
      CHECK(replace->regex != nullptr);
  }
}

absl::Status Normalizer::Apply(std::string_view text, std::string* normal) const {
  normal->assign(text);
  for (const NormalizerStep& step : steps_) {
    absl::Status status = std::visit(StepRunner{normal}, step);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace sparsekv::tokenizer
