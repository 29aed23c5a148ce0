#include <optional>

#include "coordinator/tokenizer/pre_tokenizer.h"
#include "coordinator/tokenizer/utf8.h"

namespace sparsekv::tokenizer {
namespace {

struct Span {
  std::string_view text;
  bool is_match;
};

// The whole stretch as matches, some perhaps empty, and the gaps between them. REQUIRES: stretch is
// valid UTF-8.
absl::StatusOr<std::vector<Span>> FindSpans(const SplitStep& step, std::string_view stretch) {
  std::vector<Span> spans;
  size_t covered = 0;
  size_t start = 0;
  const auto add_gap = [&](size_t end) {
    if (covered < end) spans.push_back({stretch.substr(covered, end - covered), step.invert});
    covered = end;
  };
  while (start <= stretch.size()) {
    absl::StatusOr<std::optional<Regex::Match>> match = step.regex->Find(stretch, start);
    if (!match.ok()) return match.status();
    if (!*match) break;
    const auto [begin, end] = **match;
    const bool is_empty = begin == end;
    // An empty match cuts what is around it, but not where a match has just ended.
    if (!is_empty || spans.empty() || begin != covered) {
      add_gap(begin);
      spans.push_back({stretch.substr(begin, end - begin), !step.invert});
      covered = end;
    }
    start = end;
    if (is_empty) {
      start += end < stretch.size() ? FirstUtf8Char(stretch.substr(end)).length : 1;
    }
  }
  add_gap(stretch.size());
  return spans;
}

std::string_view Joined(std::string_view left, std::string_view right) {
  return {left.data(), left.size() + right.size()};
}

void AppendForward(SplitBehavior behavior, const std::vector<Span>& spans,
                   std::vector<std::string_view>* pieces) {
  bool previous_match = false;
  bool previous_kept = false;
  for (const Span& span : spans) {
    const bool joins =
        previous_kept &&
        ((behavior == SplitBehavior::kContiguous && span.is_match == previous_match) ||
         (behavior == SplitBehavior::kMergedWithPrevious && span.is_match && !previous_match));
    previous_match = span.is_match;
    previous_kept = behavior != SplitBehavior::kRemoved || !span.is_match;
    if (joins) {
      pieces->back() = Joined(pieces->back(), span.text);
    } else if (previous_kept) {
      pieces->push_back(span.text);
    }
  }
}

void AppendMergedWithNext(const std::vector<Span>& spans, std::vector<std::string_view>* pieces) {
  for (size_t i = 0; i < spans.size(); ++i) {
    // Of matches in a row only the last one joins what follows.
    const bool joins = spans[i].is_match && i + 1 < spans.size() && !spans[i + 1].is_match;
    pieces->push_back(joins ? Joined(spans[i].text, spans[i + 1].text) : spans[i].text);
    if (joins) ++i;
  }
}

}  // namespace

absl::StatusOr<std::vector<std::string_view>> Split(const SplitStep& step, std::string_view text) {
  std::vector<std::string_view> pieces;
  while (!text.empty()) {
    const size_t valid = ValidUtf8Prefix(text);
    if (valid > 0) {
      absl::StatusOr<std::vector<Span>> spans = FindSpans(step, text.substr(0, valid));
      if (!spans.ok()) return spans.status();
      if (step.behavior == SplitBehavior::kMergedWithNext) {
        AppendMergedWithNext(*spans, &pieces);
      } else {
        AppendForward(step.behavior, *spans, &pieces);
      }
      text.remove_prefix(valid);
    }
    size_t invalid = 0;
    while (invalid < text.size() && ValidUtf8Prefix(text.substr(invalid, 4)) == 0) ++invalid;
    if (invalid > 0) pieces.push_back(text.substr(0, invalid));
    text.remove_prefix(invalid);
  }
  std::erase_if(pieces, [](std::string_view piece) { return piece.empty(); });
  return pieces;
}

}  // namespace sparsekv::tokenizer
