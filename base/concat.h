#pragma once

#include <sstream>
#include <string>
#include <utility>

namespace sparsekv {

// Strings, numbers and characters, one after the other. (Debian's Abseil has a string_view of its
// own, so absl::StrCat does not take std's.)
template <typename... Parts>
std::string Concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return std::move(out).str();
}

}  // namespace sparsekv
