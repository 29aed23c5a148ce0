#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "coordinator/tokenizer/split.h"

namespace sparsekv::tokenizer {

// Puts a space before a piece that does not start with one.
struct PrefixSpaceStep {};

// Writes each space as `mark` and, where asked for, puts one before a piece without one.
struct MetaspaceStep {
  enum class Prepend { kAlways, kFirst, kNever };
  std::string mark;
  Prepend prepend = Prepend::kAlways;
};

using PreTokenizerStep = std::variant<SplitStep, PrefixSpaceStep, MetaspaceStep>;

// Cuts a text into the words inside which merging happens. Each step works on the pieces that the
// step before it left. A piece that is not valid UTF-8 is cut into valid stretches and runs of
// invalid bytes before a regex sees it: each run is a piece of its own, and a valid stretch is
// matched as if it were the whole piece. Immutable, thread-safe.
class PreTokenizer {
 public:
  // A piece is never empty and is valid only during the call.
  using Sink = absl::FunctionRef<absl::Status(std::string_view piece)>;

  PreTokenizer() = default;
  explicit PreTokenizer(std::vector<PreTokenizerStep> steps);

  // Hands the pieces of the text to the sink from left to right. at_start: the text is the
  // beginning of what is encoded, not what follows an added token. The first error, the sink's or a
  // regex's, ends the run.
  absl::Status Run(std::string_view text, bool at_start, Sink sink) const;

 private:
  absl::Status RunFrom(size_t step, std::string_view piece, bool at_start, Sink sink) const;

  std::vector<PreTokenizerStep> steps_;
};

}  // namespace sparsekv::tokenizer
