#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

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

using NormalizerStep = std::variant<PrependStep, ReplaceStep>;

// What is done to a text before it is cut into words: steps in order, on bytes, so that invalid
// UTF-8 passes through. Immutable, thread-safe.
class Normalizer {
 public:
  Normalizer() = default;
  explicit Normalizer(std::vector<NormalizerStep> steps);

  std::string Apply(std::string_view text) const;

 private:
  std::vector<NormalizerStep> steps_;
};

}  // namespace sparsekv::tokenizer
