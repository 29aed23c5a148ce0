#include "coordinator/chat/arguments.h"

#include <algorithm>

#include "base/check.h"
#include "base/concat.h"
#include "coordinator/chat/operators.h"

namespace sparsekv::chat {

Bound Bind(std::string_view callee, const Arguments& arguments,
           std::initializer_list<std::string_view> parameters, size_t required) {
  Bound bound;
  CHECK(parameters.size() <= bound.size());
  if (arguments.positional.size() > parameters.size()) {
    ThrowRuntime(Concat(callee, " takes at most ", parameters.size(), " arguments"));
  }
  std::copy(arguments.positional.begin(), arguments.positional.end(), bound.begin());
  for (const auto& [name, value] : arguments.named) {
    const auto* place = std::find(parameters.begin(), parameters.end(), name);
    if (place == parameters.end()) {
      ThrowRuntime(Concat(callee, " has no parameter '", name, "'"));
    }
    std::optional<Value>& slot = bound[static_cast<size_t>(place - parameters.begin())];
    if (slot) ThrowRuntime(Concat(callee, " got '", name, "' twice"));
    slot = value;
  }
  for (size_t i = 0; i < required; ++i) {
    if (!bound[i]) {
      ThrowRuntime(Concat(callee, " needs its argument '", parameters.begin()[i], "'"));
    }
  }
  return bound;
}

int64_t IntegerArgument(std::string_view callee, const std::optional<Value>& value,
                        int64_t fallback) {
  if (!value) return fallback;
  if (!value->IsInteger()) {
    if (value->Is(Value::Kind::kUndefined)) ThrowUndefined(*value);
    ThrowRuntime(Concat(callee, " takes an integer, not ", TypeName(*value)));
  }
  return value->integer();
}

bool TruthArgument(const std::optional<Value>& value, bool fallback) {
  return value ? Truth(*value) : fallback;
}

std::string_view TextArgument(std::string_view callee, const Value& value) {
  if (!value.Is(Value::Kind::kString)) {
    ThrowRuntime(Concat(callee, " takes a string, not ", TypeName(value)));
  }
  return value.text();
}

}  // namespace sparsekv::chat
