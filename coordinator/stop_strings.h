#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace sparsekv {

// Cuts a text that comes in pieces before the first stop string, and holds back what could be the
// beginning of one. The first is the one that is complete first, of several the longest; so the
// result does not depend on how the text was cut into pieces. Not thread-safe.
class StopStrings {
 public:
  // REQUIRES: no stop string is empty.
  explicit StopStrings(std::vector<std::string> stops);

  // The text that is certain to lie before any stop string. Nothing after a match.
  std::string Push(std::string_view piece);
  // What was held back: the text is at its end.
  std::string Finish();

  bool matched() const { return matched_; }
  const std::string& match() const { return match_; }  // the stop string found; empty = none

 private:
  const std::vector<std::string> stops_;
  std::string held_;
  std::string match_;
  bool matched_ = false;
};

}  // namespace sparsekv
