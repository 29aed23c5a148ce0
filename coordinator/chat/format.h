#pragma once

#include <string_view>
#include <utility>
#include <vector>

#include "coordinator/chat/runtime.h"

namespace sparsekv::chat {

struct Arguments;

// text % values: flags, width and precision with s, r, d, i, x, f and %%; no names.
Value FormatPercent(Runtime& runtime, std::string_view text, const std::vector<Value>& values);

// text.format(...): {}, {0}, {name}, {{ and }}, with !s or !r; no format after a colon.
Value FormatBraces(Runtime& runtime, std::string_view text, const Arguments& arguments);

}  // namespace sparsekv::chat
