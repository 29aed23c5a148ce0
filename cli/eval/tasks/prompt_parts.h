#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/eval/tasks/task.h"

namespace sparsekv {

// A case as text: what is told, and questions about it, each with its answer's rules but no ids.
struct TextCase {
  struct Asked {
    std::string text;
    Question question;
  };
  std::string told;
  std::vector<Asked> asked;
};

// The case as ids. The told text and each question are tokenised together, and parted where the ids
// of the told text alone end, so that no token is what it would not be in one text.
absl::StatusOr<TaskCase> Tokenise(const TextCase& text, const TaskSettings& settings);

// The case that `make` gives for the largest size (lines, sentences, words) whose tokens, questions
// and answers fit settings.context; sizes start at `least`. INVALID_ARGUMENT when not even that
// fits.
absl::StatusOr<TaskCase> FitToContext(const TaskSettings& settings, uint32_t least,
                                      const std::function<TextCase(uint32_t size)>& make);

// Tokens that an answer has, and a few for what may stand around it.
absl::StatusOr<uint32_t> TokensFor(const std::string& answer, const TaskSettings& settings);

}  // namespace sparsekv
