#pragma once

#include <string>
#include <string_view>
#include <type_traits>

namespace sparsekv {

// Strings and numbers, one after the other. (absl::StrCat takes no std::string_view where the
// packaged library was built for C++14.)
template <typename... Parts>
std::string Concat(const Parts&... parts) {
  std::string out;
  const auto append = [&out](const auto& part) {
    if constexpr (std::is_convertible_v<decltype(part), std::string_view>) {
      out.append(std::string_view(part));
    } else {
      out.append(std::to_string(part));
    }
  };
  (append(parts), ...);
  return out;
}

}  // namespace sparsekv
