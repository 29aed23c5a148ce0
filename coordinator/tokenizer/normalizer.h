#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/tokenizer/regex.h"
#include "coordinator/tokenizer/unicode_forms.h"

namespace sparsekv::tokenizer {

// Puts `text` before a text that is not empty.
struct PrependStep {
  std::string text;
};

// Replaces each occurrence of `pattern`, from left to right. REQUIRES: pattern is not empty.
struct ReplaceStep {
  std::string pattern;
  std::string content;
  void Apply(std::string* text) const;
};

// Replaces each match by `content` as it stands. Invalid bytes are never part of a match, and what
// is between them is matched as a text of its own.
struct ReplaceRegexStep {
  std::shared_ptr<const Regex> regex;
  std::string content;
};

struct LowercaseStep {};
struct StripAccentsStep {};
struct StripStep {
  bool left = true;
  bool right = true;
};

using NormalizerStep = std::variant<PrependStep, ReplaceStep, ReplaceRegexStep, UnicodeForm,
                                    LowercaseStep, StripAccentsStep, StripStep>;

// What is done to a text before it is cut into words: steps in order, on text that may hold invalid
// UTF-8, whose bytes pass through. Immutable, thread-safe.
class Normalizer {
 public:
  static constexpr size_t kMaxBytes = size_t{1} << 30;

  Normalizer() = default;
  explicit Normalizer(std::vector<NormalizerStep> steps);

  // ResourceExhausted when a regex gives up or the text grows beyond kMaxBytes.
  absl::Status Apply(std::string_view text, std::string* normal) const;

  // Without steps a text is its own normal form.
  bool IsIdentity() const { return steps_.empty(); }

 private:
  std::vector<NormalizerStep> steps_;
};

}  // namespace sparsekv::tokenizer
