#pragma once

#include <string>

namespace sparsekv {

// A text that somebody else wrote, as a message may show it: control characters become '?'.
inline std::string OneLine(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return text;
}

}  // namespace sparsekv
