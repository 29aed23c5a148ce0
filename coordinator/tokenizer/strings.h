#pragma once

#include <string>
#include <string_view>

namespace sparsekv::tokenizer {

// Every occurrence of `pattern`, from left to right, becomes `content`. REQUIRES: pattern is not
// empty.
inline std::string ReplaceAll(std::string_view text, std::string_view pattern,
                              std::string_view content) {
  std::string out;
  size_t done = 0;
  for (size_t at = text.find(pattern); at != text.npos; at = text.find(pattern, done)) {
    out.append(text.substr(done, at - done)).append(content);
    done = at + pattern.size();
  }
  return out.append(text.substr(done));
}

}  // namespace sparsekv::tokenizer
