#pragma once

#include <span>
#include <string_view>
#include <utility>

#include "coordinator/chat/arguments.h"
#include "coordinator/chat/value.h"

namespace sparsekv::chat {

class Interpreter;

using Filter = Value (*)(Interpreter&, const Value& input, const Arguments&);

std::span<const std::pair<std::string_view, Filter>> SequenceFilters();

}  // namespace sparsekv::chat
