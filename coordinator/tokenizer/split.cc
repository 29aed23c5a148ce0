#include "coordinator/tokenizer/split.h"

#include <optional>

#include "coordinator/tokenizer/utf8.h"

namespace sparsekv::tokenizer {
namespace {

// The spans of one stretch. REQUIRES: stretch is valid UTF-8.
absl::Status AppendSpans(const Regex& regex, std::string_view stretch, std::vector<Span>* spans) {
  size_t covered = 0;
  size_t start = 0;
  bool is_first = true;
  const auto add_gap = [&](size_t end) {
    if (covered < end) spans->push_back({stretch.substr(covered, end - covered)});
    covered = end;
  };
  while (start <= stretch.size()) {
    absl::StatusOr<std::optional<Regex::Match>> match = regex.Find(stretch, start);
    if (!match.ok()) return match.status();
    if (!*match) break;
    const auto [begin, end] = **match;
    const bool is_empty = begin == end;
    // An empty match cuts what is around it, but not where a match has just ended.
    if (!is_empty || is_first || begin != covered) {
      add_gap(begin);
      spans->push_back({stretch.substr(begin, end - begin), true});
      covered = end;
      is_first = false;
    }
    start = end;
    if (is_empty) {
      start += end < stretch.size() ? FirstUtf8Char(stretch.substr(end)).length : 1;
    }
  }
  add_gap(stretch.size());
  return absl::OkStatus();
}

std::string_view Joined(std::string_view left, std::string_view right) {
  return {left.data(), left.size() + right.size()};
}

bool JoinsPrevious(SplitBehavior behavior, bool is_match, bool previous_is_match) {
  return (behavior == SplitBehavior::kContiguous && is_match == previous_is_match) ||
         (behavior == SplitBehavior::kMergedWithPrevious && is_match && !previous_is_match);
}

// Appends the pieces of spans[begin, end), which are of one valid stretch.
void AppendForward(const SplitStep& step, const std::vector<Span>& spans, size_t begin, size_t end,
                   std::vector<std::string_view>* pieces) {
  bool previous_match = false;
  bool previous_kept = false;
  for (size_t i = begin; i < end; ++i) {
    const bool is_match = spans[i].is_match != step.invert;
    const bool joins = previous_kept && JoinsPrevious(step.behavior, is_match, previous_match);
    previous_match = is_match;
    previous_kept = step.behavior != SplitBehavior::kRemoved || !is_match;
    if (joins) {
      pieces->back() = Joined(pieces->back(), spans[i].text);
    } else if (previous_kept) {
      pieces->push_back(spans[i].text);
    }
  }
}

void AppendMergedWithNext(const SplitStep& step, const std::vector<Span>& spans, size_t begin,
                          size_t end, std::vector<std::string_view>* pieces) {
  const auto is_match = [&](size_t i) { return spans[i].is_match != step.invert; };
  for (size_t i = begin; i < end; ++i) {
    // Of matches in a row only the last one joins what follows.
    const bool joins = is_match(i) && i + 1 < end && !is_match(i + 1);
    pieces->push_back(joins ? Joined(spans[i].text, spans[i + 1].text) : spans[i].text);
    if (joins) ++i;
  }
}

}  // namespace

absl::StatusOr<std::vector<Span>> FindSpans(const Regex& regex, std::string_view text) {
  std::vector<Span> spans;
  while (!text.empty()) {
    const size_t valid = ValidUtf8Prefix(text);
    if (valid > 0) {
      absl::Status status = AppendSpans(regex, text.substr(0, valid), &spans);
      if (!status.ok()) return status;
      text.remove_prefix(valid);
    }
    size_t invalid = 0;
    while (invalid < text.size() && ValidUtf8Prefix(text.substr(invalid, 4)) == 0) ++invalid;
    if (invalid > 0) spans.push_back({text.substr(0, invalid), false, false});
    text.remove_prefix(invalid);
  }
  return spans;
}

absl::StatusOr<std::vector<std::string_view>> Split(const SplitStep& step, std::string_view text) {
  absl::StatusOr<std::vector<Span>> spans = FindSpans(*step.regex, text);
  if (!spans.ok()) return spans.status();
  std::vector<std::string_view> pieces;
  for (size_t begin = 0; begin < spans->size();) {
    size_t end = begin;
    while (end < spans->size() && (*spans)[end].is_valid) ++end;
    if (step.behavior == SplitBehavior::kMergedWithNext) {
      AppendMergedWithNext(step, *spans, begin, end, &pieces);
    } else {
      AppendForward(step, *spans, begin, end, &pieces);
    }
    if (end < spans->size()) pieces.push_back((*spans)[end++].text);
    begin = end;
  }
  std::erase_if(pieces, [](std::string_view piece) { return piece.empty(); });
  return pieces;
}

}  // namespace sparsekv::tokenizer
