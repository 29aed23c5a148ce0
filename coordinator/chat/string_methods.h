#pragma once

#include <string_view>

#include "coordinator/chat/arguments.h"

namespace sparsekv::chat {

bool HasStringMethod(std::string_view name);  // of Python's str
Value CallStringMethod(Runtime& runtime, const Value& self, std::string_view name,
                       const Arguments& arguments);

}  // namespace sparsekv::chat
