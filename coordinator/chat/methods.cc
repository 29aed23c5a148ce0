// Methods of dictionaries, lists and `loop`. Those of strings are in string_methods.cc.
#include <algorithm>

#include "base/concat.h"
#include "coordinator/chat/builtins.h"
#include "coordinator/chat/interpreter.h"
#include "coordinator/chat/loop.h"
#include "coordinator/chat/operators.h"
#include "coordinator/chat/string_methods.h"

namespace sparsekv::chat {

using Kind = Value::Kind;

namespace {

using Names = std::initializer_list<std::string_view>;

bool Has(Names names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

Value CallDict(Runtime& runtime, const Value& self, std::string_view name,
               const Arguments& arguments) {
  if (name == "get") {
    const Bound bound = Bind("dict.get", arguments, {"key", "default"}, 1);
    CheckHashable(*bound[0]);
    if (const DictEntry* entry = Find(runtime, self.dict(), *bound[0])) return entry->value;
    return bound[1] ? *bound[1] : Value::None();
  }
  Bind(name, arguments, {});
  if (name == "keys") return runtime.View(self.dict(), DictView::What::kKeys);
  if (name == "values") return runtime.View(self.dict(), DictView::What::kValues);
  if (name == "items") return runtime.View(self.dict(), DictView::What::kItems);
  if (name == "copy") return self;
  Throw(ErrorKind::kUnsupported, Concat("dict.", name, " is not supported"));
}

Value CallList(Runtime& runtime, const Value& self, std::string_view name,
               const Arguments& arguments) {
  if (name == "copy") return self;
  const Bound bound = Bind(name, arguments, {"value"}, 1);
  int64_t count = 0;
  for (size_t i = 0; i < self.list().size; ++i) {
    if (!Equal(runtime, self.list().items[i], *bound[0])) continue;
    if (name == "index") return Value::Int(static_cast<int64_t>(i));
    ++count;
  }
  if (name == "index") ThrowRuntime("index: the value is not in the list");
  return Value::Int(count);
}

Value CallLoop(Runtime& runtime, Loop& loop, std::string_view name, const Arguments& arguments) {
  const auto& given = arguments.positional;
  if (name == "cycle") {
    if (given.empty()) ThrowRuntime("loop.cycle needs items");
    return given[static_cast<size_t>(loop.index0) % given.size()];
  }
  const Value now = runtime.MakeList(given, true);
  const bool changed = !loop.has_seen || !Equal(runtime, loop.seen, now);
  loop.has_seen = true;
  loop.seen = now;
  return Value::Bool(changed);
}

}  // namespace

bool HasMethod(const Value& value, std::string_view name) {
  switch (value.kind()) {
    case Kind::kString:
      return HasStringMethod(name);
    case Kind::kDict:
      return IsForbidden(value, name) ||
             Has({"copy", "fromkeys", "get", "items", "keys", "values"}, name);
    case Kind::kList:
      return IsForbidden(value, name) || Has({"copy", "count", "index"}, name);
    case Kind::kTuple:
      return Has({"count", "index"}, name);
    case Kind::kLoop:
      return Has({"cycle", "changed"}, name);
    default:
      return false;
  }
}

bool IsForbidden(const Value& value, std::string_view name) {
  if (value.Is(Kind::kDict)) {
    return Has({"clear", "pop", "popitem", "setdefault", "update"}, name);
  }
  return value.Is(Kind::kList) &&
         Has({"append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"}, name);
}

Value CallMethod(Interpreter& interpreter, const Value& self, std::string_view name,
                 const Arguments& arguments) {
  Runtime& runtime = interpreter.runtime();
  runtime.Charge();
  if (self.Is(Kind::kString)) return CallStringMethod(runtime, self, name, arguments);
  if (self.Is(Kind::kDict)) return CallDict(runtime, self, name, arguments);
  if (self.Is(Kind::kLoop)) return CallLoop(runtime, self.loop(), name, arguments);
  return CallList(runtime, self, name, arguments);
}

}  // namespace sparsekv::chat
