#pragma once

#include <span>
#include <string>
#include <vector>

namespace sparsekv {

// How a generated text is compared with the answers. All give 0 .. 1.
enum class Scoring : unsigned char {
  kContainsAll,     // share of the answers that the text has in it
  kContainsAny,     // whether it has one
  kF1,              // words in common, best answer
  kRougeL,          // longest common subsequence of words, best answer
  kClassification,  // the right class, less for every other that is named too
  kCount,           // share of the numbers in the text that are the answer
  kPassage,         // share of the numbers in the text that are the answer's paragraph number
  kCodeEdit,        // similarity of the first line of code, best answer
};

double Score(Scoring scoring, const std::string& text, std::span<const std::string> answers,
             std::span<const std::string> classes);

}  // namespace sparsekv
