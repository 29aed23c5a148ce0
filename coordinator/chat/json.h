#pragma once

#include <string>
#include <string_view>

#include "coordinator/chat/runtime.h"

namespace sparsekv::chat {

// A JSON text as Python's json.loads reads it: keys in order, the last of equal ones. Throws
// kRuntime, with `what` in front, for what is no JSON, has integers beyond 64 bits or is nested
// deeper than kMaxJsonDepth.
inline constexpr size_t kMaxJsonDepth = 100;
Value ParseJson(Runtime& runtime, std::string_view text, std::string_view what);

struct JsonFormat {
  bool ascii = false;  // ensure_ascii
  bool sort_keys = false;
  bool lines = false;  // an item a line, `indent` in front for each level
  std::string indent;
  std::string item_separator = ", ", key_separator = ": ";
};
// As Python's json.dumps writes it; throws for what that refuses.
std::string DumpJson(Runtime& runtime, const Value& value, const JsonFormat& format);

}  // namespace sparsekv::chat
