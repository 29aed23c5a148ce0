#pragma once

#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/tokenizer/regex.h"

namespace sparsekv::tokenizer {

// What becomes of the matches of a split.
enum class SplitBehavior { kIsolated, kRemoved, kContiguous, kMergedWithPrevious, kMergedWithNext };

// Cuts a piece at the matches of a regex (invert: at what is between them).
struct SplitStep {
  std::shared_ptr<const Regex> regex;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;
};

// A match, perhaps empty, or what is between two.
struct Span {
  std::string_view text;
  bool is_match = false;
  bool is_valid = true;  // UTF-8; otherwise it is a run of invalid bytes, and no match
};

// All of the text, cut at the matches; views into it. A text that is not valid UTF-8 is cut into
// valid stretches and runs of invalid bytes first, and each stretch is matched as if it were all.
absl::StatusOr<std::vector<Span>> FindSpans(const Regex& regex, std::string_view text);

// The pieces of one split; views into the text, none empty. A run of invalid bytes is a piece.
absl::StatusOr<std::vector<std::string_view>> Split(const SplitStep& step, std::string_view text);

}  // namespace sparsekv::tokenizer
