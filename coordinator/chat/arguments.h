#pragma once

#include <array>
#include <initializer_list>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "coordinator/chat/runtime.h"

namespace sparsekv::chat {

// What a call passes.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string_view, Value>> named;
};

// The arguments in the places of a function's parameters; absent ones are empty.
using Bound = std::array<std::optional<Value>, 5>;

// Throws, with the name of what is called, for too many, unknown and missing arguments: the first
// `required` parameters must be there. REQUIRES: at most five parameters.
Bound Bind(std::string_view callee, const Arguments& arguments,
           std::initializer_list<std::string_view> parameters, size_t required = 0);

// An argument as the type that a function wants.
int64_t IntegerArgument(std::string_view callee, const std::optional<Value>& value,
                        int64_t fallback);
bool TruthArgument(const std::optional<Value>& value, bool fallback);
std::string_view TextArgument(std::string_view callee, const Value& value);

}  // namespace sparsekv::chat
