#include "cli/eval/tasks/prompt_parts.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace sparsekv {

namespace {

constexpr uint32_t kAnswerRoom = 4;  // tokens around an answer

// Tokens of the longest question with its answer.
size_t Longest(const TaskCase& made) {
  size_t longest = 0;
  for (const Question& q : made.questions) {
    longest = std::max(longest, q.ids.size() + q.max_new_tokens);
  }
  return made.prefix.size() + longest;
}

absl::Status CheckIds(const std::vector<uint32_t>& ids, const TaskSettings& settings) {
  const uint32_t vocab = settings.files->config.vocab_size;
  for (uint32_t id : ids) {
    if (id >= vocab) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokenizer.json: id ", id, " is not below the vocabulary size ", vocab));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<uint32_t> TokensFor(const std::string& answer, const TaskSettings& settings) {
  auto ids = settings.tokenizer->Encode(answer, Tokenizer::Bos::kNone);
  if (!ids.ok()) return ids.status();
  return static_cast<uint32_t>(ids->size()) + kAnswerRoom;
}

absl::StatusOr<TaskCase> Tokenise(const TextCase& text, const TaskSettings& settings) {
  auto told = settings.tokenizer->Encode(text.told);
  if (!told.ok()) return told.status();
  size_t common = told->size();
  std::vector<std::vector<uint32_t>> wholes;
  for (const TextCase::Asked& asked : text.asked) {
    auto whole = settings.tokenizer->Encode(text.told + asked.text);
    if (!whole.ok()) return whole.status();
    if (absl::Status s = CheckIds(*whole, settings); !s.ok()) return s;
    const size_t same =
        static_cast<size_t>(std::ranges::mismatch(*told, *whole).in1 - told->begin());
    common = std::min({common, same, whole->size() - 1});
    wholes.push_back(*std::move(whole));
  }
  TaskCase made;
  made.prefix.assign(told->begin(), told->begin() + static_cast<ptrdiff_t>(common));
  for (size_t i = 0; i < wholes.size(); ++i) {
    made.questions.push_back(text.asked[i].question);
    made.questions.back().ids.assign(wholes[i].begin() + static_cast<ptrdiff_t>(common),
                                     wholes[i].end());
  }
  return made;
}

absl::StatusOr<TaskCase> FitToContext(const TaskSettings& settings, uint32_t least,
                                      const std::function<TextCase(uint32_t size)>& make) {
  // Tokens grow about evenly with the size: two points give a guess, which then shrinks to fit.
  auto small = Tokenise(make(least), settings);
  if (!small.ok()) return small.status();
  auto larger = Tokenise(make(least + 32), settings);
  if (!larger.ok()) return larger.status();
  const size_t base = Longest(*small), more = Longest(*larger);
  if (base > settings.context) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--context: ", settings.context, " tokens are too few, the shortest case has ", base));
  }
  const double each = std::max(1.0, static_cast<double>(more - std::min(base, more)) / 32);
  auto size = least + static_cast<uint32_t>(static_cast<double>(settings.context - base) / each);
  while (true) {
    auto made = Tokenise(make(size), settings);
    if (!made.ok()) return made.status();
    const size_t tokens = Longest(*made);
    if (tokens <= settings.context || size == least) return made;
    const auto over = static_cast<uint32_t>(static_cast<double>(tokens - settings.context) / each);
    size -= std::min(std::max(over, 1u), size - least);
  }
}

}  // namespace sparsekv
