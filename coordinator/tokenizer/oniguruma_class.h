#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace sparsekv::tokenizer {

// Takes the character class that *rest begins with, in Oniguruma's Ruby dialect, and gives it in
// PCRE2's as an expression that matches the same single characters. Classes inside classes and
// intersections (&&), which PCRE2 does not have, become alternatives and lookaheads. REQUIRES:
// rest->starts_with("[").
absl::StatusOr<std::string> TakeOnigurumaClass(std::string_view* rest);

// Takes the escape that *rest begins with, inside a class or outside. REQUIRES:
// rest->starts_with("\\").
absl::StatusOr<std::string> TakeOnigurumaEscape(std::string_view* rest, bool in_class);

}  // namespace sparsekv::tokenizer
