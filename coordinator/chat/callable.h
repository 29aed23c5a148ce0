#pragma once

#include <string_view>

#include "coordinator/chat/value.h"

namespace sparsekv::chat {

struct Macro;
struct Scope;

// What can be called.
struct Callable {
  enum class Type : uint8_t { kMacro, kMethod, kFunction };
  Type type;
  std::string_view name = {};  // of a method or function
  Value self = {};             // kMethod: whose
  const Macro* macro = nullptr;
  Scope* scope = nullptr;  // kMacro: where it was defined
};

}  // namespace sparsekv::chat
