#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

// tokenizer.json writes its regexes in Oniguruma's Ruby dialect. Pure functions.
namespace sparsekv::tokenizer {

// The same regex in PCRE2's dialect, where the two differ: \s and \w have Oniguruma's Unicode
// meaning, \p{Han} is the script, not its extensions, a{1,3}+ repeats a{1,3} and is not possessive,
// and character classes may hold others and intersections. What has no faithful translation (\b,
// \h, (?m), flags that reach beyond their group) is refused with Unimplemented, never read in
// PCRE2's different sense. The result may still not compile.
absl::StatusOr<std::string> TranslateOniguruma(std::string_view pattern);

}  // namespace sparsekv::tokenizer
