// Expressions.
#include <utility>

#include "base/concat.h"
#include "coordinator/chat/builtins.h"
#include "coordinator/chat/cursor.h"
#include "coordinator/chat/interpreter.h"
#include "coordinator/chat/loop.h"
#include "coordinator/chat/operators.h"

namespace sparsekv::chat {

using Kind = Expression::Kind;

Value Interpreter::Evaluate(const Expression& node) {
  const Runtime::Depth depth(runtime_);
  try {
    runtime_.Charge();
    return EvaluateNode(node);
  } catch (TemplateError& error) {
    if (error.line == 0) error.line = node.line;
    throw;
  }
}

Value Interpreter::EvaluateNode(const Expression& node) {
  switch (node.kind) {
    case Kind::kConstant:
      return node.value;
    case Kind::kName:
      return EvaluateName(node);
    case Kind::kList:
    case Kind::kTuple:
      return EvaluateItems(node);
    case Kind::kDict:
      return EvaluateDict(node);
    case Kind::kAttribute:
      return Attribute(Evaluate(*node.items[0]), node.name);
    case Kind::kSubscript: {
      const Value owner = Evaluate(*node.items[0]);
      return Subscript(owner, Evaluate(*node.items[1]));
    }
    case Kind::kSlice:
      return EvaluateSlice(node);
    case Kind::kCall:
      return EvaluateCall(node);
    case Kind::kFilter:
      return EvaluateFilter(node);
    case Kind::kTest: {
      const Value value = Evaluate(*node.items[0]);
      return Value::Bool(ApplyTest(*this, node.name, value, EvaluateArguments(node)));
    }
    case Kind::kNot:
      return Value::Bool(!Truth(Evaluate(*node.items[0])));
    case Kind::kNegate:
      return Negate(Evaluate(*node.items[0]));
    case Kind::kPlus:
      return Negate(Negate(Evaluate(*node.items[0])));
    case Kind::kBinary: {
      const Value left = Evaluate(*node.items[0]);
      return Arithmetic(runtime_, node.binary, left, Evaluate(*node.items[1]));
    }
    case Kind::kCompare:
      return EvaluateCompare(node);
    case Kind::kAnd: {
      const Value left = Evaluate(*node.items[0]);
      return Truth(left) ? Evaluate(*node.items[1]) : left;
    }
    case Kind::kOr: {
      const Value left = Evaluate(*node.items[0]);
      return Truth(left) ? left : Evaluate(*node.items[1]);
    }
    case Kind::kConcat:
      return EvaluateConcat(node);
    case Kind::kCondition:
      return EvaluateCondition(node);
  }
  return {};
}

Value Interpreter::EvaluateName(const Expression& node) {
  for (Scope* scope = scope_; scope != nullptr; scope = scope->parent) {
    runtime_.ChargeSearch(scope->names.size(), node.name);
    if (const Value* value = scope->FindHere(node.name)) return *value;
  }
  runtime_.ChargeSearch(globals_.names.size(), node.name);
  if (const Value* value = globals_.FindHere(node.name)) return *value;
  if (HasFunction(node.name)) {
    return Value::Of(runtime_.arena().New<Callable>(Callable::Type::kFunction, node.name));
  }
  if (node.name == "self") Throw(ErrorKind::kUnsupported, "'self' is not supported");
  return runtime_.Undefined(UndefinedInfo::How::kName, {}, Value::String(node.name));
}

Value Interpreter::EvaluateItems(const Expression& node) {
  std::vector<Value> items;
  items.reserve(node.items.size());
  for (const Expression* item : node.items) items.push_back(Evaluate(*item));
  return runtime_.MakeList(items, node.kind == Kind::kTuple);
}

Value Interpreter::EvaluateDict(const Expression& node) {
  std::vector<DictEntry> entries;
  for (size_t i = 0; i < node.items.size(); i += 2) {
    const Value key = Evaluate(*node.items[i]);
    entries.push_back({key, Evaluate(*node.items[i + 1])});
  }
  return runtime_.MakeDict(entries);
}

Value Interpreter::EvaluateSlice(const Expression& node) {
  const Value owner = Evaluate(*node.items[0]);
  Value parts[3];
  for (size_t i = 0; i < 3; ++i) {
    parts[i] = node.items[i + 1] ? Evaluate(*node.items[i + 1]) : Value::None();
  }
  return Slice(runtime_, owner, parts[0], parts[1], parts[2]);
}

Value Interpreter::EvaluateCompare(const Expression& node) {
  Value left = Evaluate(*node.items[0]);
  for (size_t i = 0; i < node.compares.size(); ++i) {
    const Value right = Evaluate(*node.items[i + 1]);
    if (!Compare(runtime_, node.compares[i], left, right)) return Value::Bool(false);
    left = right;
  }
  return Value::Bool(true);
}

Value Interpreter::EvaluateConcat(const Expression& node) {
  std::string text;
  for (const Expression* item : node.items) {
    const std::string_view part = Str(runtime_, Evaluate(*item));
    runtime_.CheckText(text.size() + part.size());
    text += part;
  }
  return runtime_.Text(text);
}

Value Interpreter::EvaluateCondition(const Expression& node) {
  if (Truth(Evaluate(*node.items[1]))) return Evaluate(*node.items[0]);
  if (node.items[2] != nullptr) return Evaluate(*node.items[2]);
  return runtime_.Undefined(
      UndefinedInfo::How::kHint, {},
      Value::String("the result of an inline if that was false and has no else is undefined"));
}

Value Interpreter::EvaluateFilter(const Expression& node) {
  const Value input = node.items[0] ? Evaluate(*node.items[0]) : *filter_input_;
  return ApplyFilter(*this, node.name, input, EvaluateArguments(node));
}

Value Interpreter::ApplyFilters(const Expression& filters, const Value& input) {
  struct Restore {
    Interpreter& interpreter;
    const Value* before;
    ~Restore() { interpreter.filter_input_ = before; }
  } restore{*this, std::exchange(filter_input_, &input)};
  return Evaluate(filters);
}

Value Interpreter::EvaluateCall(const Expression& node) {
  const Value callee = Evaluate(*node.items[0]);
  return Call(callee, EvaluateArguments(node));
}

Arguments Interpreter::EvaluateArguments(const Expression& node) {
  Arguments arguments;
  for (const Expression* argument : node.arguments) {
    arguments.positional.push_back(Evaluate(*argument));
  }
  for (const auto& [name, argument] : node.named) {
    arguments.named.emplace_back(name, Evaluate(*argument));
  }
  if (node.spread != nullptr) {
    for (const Value& item : Items(runtime_, Evaluate(*node.spread))) {
      arguments.positional.push_back(item);
    }
  }
  if (node.spread_named != nullptr) {
    const Value more = Evaluate(*node.spread_named);
    if (!more.Is(Value::Kind::kDict)) ThrowRuntime("** takes a dictionary");
    for (const DictEntry& entry : more.dict()) {
      if (arguments.named.size() >= Namespace::kMaxNames) ThrowLimit("named arguments");
      const std::string_view name = TextArgument("**", entry.key);
      runtime_.ChargeBytes(name.size());
      arguments.named.emplace_back(name, entry.value);
    }
  }
  return arguments;
}

Value Interpreter::Call(const Value& callee, const Arguments& arguments) {
  if (callee.Is(Value::Kind::kUndefined)) ThrowUndefined(callee);
  if (!callee.Is(Value::Kind::kCallable)) {
    ThrowRuntime(Concat("a ", TypeName(callee), " cannot be called"));
  }
  const Callable& callable = callee.callable();
  switch (callable.type) {
    case Callable::Type::kMacro:
      return CallMacro(callable, arguments);
    case Callable::Type::kMethod:
      return CallMethod(*this, callable.self, callable.name, arguments);
    case Callable::Type::kFunction:
      break;
  }
  return CallFunction(*this, callable.name, arguments);
}

namespace {

Value Method(Runtime& runtime, const Value& self, std::string_view name) {
  if (IsForbidden(self, name)) {
    return runtime.Undefined(UndefinedInfo::How::kUnsafe, self, Value::String(name));
  }
  return Value::Of(runtime.arena().New<Callable>(Callable::Type::kMethod, name, self));
}

}  // namespace

// Python's attribute before the item of that name.
Value Interpreter::Attribute(const Value& value, std::string_view name) {
  if (value.Is(Value::Kind::kUndefined)) ThrowUndefined(value);
  runtime_.ChargeBytes(name.size());
  if (value.Is(Value::Kind::kNamespace)) {
    runtime_.ChargeSearch(value.names().size, name);
    if (const Value* found = value.names().Find(name)) return *found;
  } else if (value.Is(Value::Kind::kLoop)) {
    if (const auto found = value.loop().Attribute(*this, name)) return *found;
  }
  if (HasMethod(value, name)) return Method(runtime_, value, name);
  const Value key = Value::String(name);
  if (value.Is(Value::Kind::kDict)) {
    if (const auto item = Item(runtime_, value, key)) return *item;
  }
  return runtime_.Undefined(UndefinedInfo::How::kMember, value, key);
}

// Python's item before the attribute of that name.
Value Interpreter::Subscript(const Value& value, const Value& key) {
  if (const auto item = Item(runtime_, value, key)) return *item;
  if (key.Is(Value::Kind::kString)) {
    const std::string_view name = key.text();
    runtime_.ChargeBytes(name.size());
    if (value.Is(Value::Kind::kNamespace) || value.Is(Value::Kind::kLoop)) {
      return Attribute(value, name);
    }
    if (HasMethod(value, name)) return Method(runtime_, value, name);
  }
  return runtime_.Undefined(UndefinedInfo::How::kMember, value, key);
}

}  // namespace sparsekv::chat
