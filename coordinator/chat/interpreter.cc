// Statements and macros. Expressions are in evaluate.cc.
#include "coordinator/chat/interpreter.h"

#include <utility>

#include "base/concat.h"
#include "coordinator/chat/cursor.h"
#include "coordinator/chat/loop.h"
#include "coordinator/chat/operators.h"

namespace sparsekv::chat {

using Kind = Statement::Kind;

// Enters a new scope inside `parent`; leaves to where it came from.
class Interpreter::Enter {
 public:
  Enter(Interpreter& interpreter, Scope* parent)
      : interpreter_(interpreter), before_(interpreter.scope_) {
    interpreter_.scope_ = interpreter_.pool_.Push(parent);
  }
  ~Enter() {
    interpreter_.pool_.Pop(interpreter_.scope_);
    interpreter_.scope_ = before_;
  }
  Enter(const Enter&) = delete;
  Enter& operator=(const Enter&) = delete;

 private:
  Interpreter& interpreter_;
  Scope* const before_;
};

std::string Interpreter::Render() {
  std::string out;
  out_ = &out;
  const Enter enter(*this, nullptr);
  Run(tree_.root);
  return out;
}

Interpreter::Flow Interpreter::Run(const Block& block) {
  for (const Statement* node : block) {
    const Flow flow = Run(*node);
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::Run(const Statement& node) {
  const Runtime::Depth depth(runtime_);
  try {
    runtime_.Charge();
    return RunNode(node);
  } catch (TemplateError& error) {
    if (error.line == 0) error.line = node.line;
    throw;
  }
}

Interpreter::Flow Interpreter::RunNode(const Statement& node) {
  switch (node.kind) {
    case Kind::kText:
      Write(node.text);
      break;
    case Kind::kPrint:
      RunPrint(node);
      break;
    case Kind::kFor:
      return RunFor(node);
    case Kind::kIf:
      return RunIf(node);
    case Kind::kSet:
      Assign(*node.target, Evaluate(*node.value));
      break;
    case Kind::kSetBlock: {
      const Value text = Capture(node.body);
      Assign(*node.target, node.value ? ApplyFilters(*node.value, text) : text);
      break;
    }
    case Kind::kMacro:
      scope_->Set(runtime_, node.macro->name, MakeMacro(*node.macro));
      break;
    case Kind::kCall:
      RunCall(node);
      break;
    case Kind::kFilterBlock:
      Write(Str(runtime_, ApplyFilters(*node.value, Capture(node.body))));
      break;
    case Kind::kWith:
      RunWith(node);
      break;
    case Kind::kScope:
      Write(Capture(node.body).text());
      break;
    case Kind::kBreak:
      return Flow::kBreak;
    case Kind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNext;
}

void Interpreter::RunPrint(const Statement& node) {
  for (const Expression* value : node.values) Write(Str(runtime_, Evaluate(*value)));
}

Interpreter::Flow Interpreter::RunFor(const Statement& node) {
  Loop* loop = runtime_.arena().New<Loop>();
  loop->iterable = Evaluate(*node.value);
  loop->source = Iterate(loop->iterable);
  loop->statement = &node;
  if (node.condition != nullptr) loop->outside = scope_;
  loop->has_length = node.condition == nullptr && HasLength(loop->iterable);
  const Loop::End end(loop);
  bool any = false;
  for (Value item; loop->Next(*this, &item);) {
    any = true;
    const Enter enter(*this, scope_);
    Assign(*node.target, item);
    scope_->Set(runtime_, "loop", Value::Of(loop));
    if (Run(node.body) == Flow::kBreak) return Flow::kNext;
  }
  if (any || node.otherwise.empty()) return Flow::kNext;
  const Enter enter(*this, scope_);
  return Run(node.otherwise);
}

bool Interpreter::Accepts(const Statement& loop, Scope* outside, const Value& item) {
  const Enter enter(*this, outside);
  Assign(*loop.target, item);
  return Truth(Evaluate(*loop.condition));
}

Interpreter::Flow Interpreter::RunIf(const Statement& node) {
  for (size_t i = 0; i < node.values.size(); ++i) {
    if (Truth(Evaluate(*node.values[i]))) return Run(node.branches[i]);
  }
  return Run(node.otherwise);
}

// {% call(a, b) macro(...) %}body{% endcall %}
void Interpreter::RunCall(const Statement& node) {
  const Value callee = Evaluate(*node.value->items[0]);
  Arguments arguments = EvaluateArguments(*node.value);
  arguments.named.emplace_back("caller", MakeMacro(*node.macro));
  Write(Str(runtime_, Call(callee, arguments)));
}

void Interpreter::RunWith(const Statement& node) {
  std::vector<Value> values;  // of the scope outside
  for (const Expression* value : node.values) values.push_back(Evaluate(*value));
  const Enter enter(*this, scope_);
  for (size_t i = 0; i < values.size(); ++i) Assign(*node.targets[i], values[i]);
  Run(node.body);
}

void Interpreter::Assign(const Target& target, const Value& value) {
  switch (target.kind) {
    case Target::Kind::kName:
      scope_->Set(runtime_, target.name, value);
      break;
    case Target::Kind::kTuple:
      AssignTuple(target, value);
      break;
    case Target::Kind::kAttribute: {
      const Value owner =
          EvaluateName({.kind = Expression::Kind::kName, .line = target.line, .name = target.name});
      if (!owner.Is(Value::Kind::kNamespace)) {
        ThrowRuntime(Concat("'", target.name, "' is no namespace: its attribute '",
                            target.attribute, "' cannot be set"));
      }
      owner.names().Set(runtime_, target.attribute, value);
      break;
    }
  }
}

void Interpreter::AssignTuple(const Target& target, const Value& value) {
  const std::vector<Value> items = Items(runtime_, value);
  if (items.size() != target.items.size()) {
    ThrowRuntime(Concat(items.size(), " values for ", target.items.size(), " names"));
  }
  for (size_t i = 0; i < items.size(); ++i) Assign(*target.items[i], items[i]);
}

void Interpreter::Write(std::string_view text) {
  if (text.size() > runtime_.limits().output_bytes - out_->size()) ThrowLimit("output_bytes");
  if (text.size() > runtime_.limits().memory_bytes - written_) ThrowLimit("memory_bytes");
  written_ += text.size();
  runtime_.ChargeBytes(text.size());
  out_->append(text);
}

Value Interpreter::Capture(const Block& block) {
  std::string text;
  struct Restore {
    Interpreter& interpreter;
    std::string* out;
    const std::string& text;
    ~Restore() {
      interpreter.out_ = out;
      interpreter.written_ -= text.size();
    }
  } restore{*this, std::exchange(out_, &text), text};
  const Enter enter(*this, scope_);
  Run(block);
  return runtime_.Text(text);
}

Value Interpreter::MakeMacro(const Macro& macro) {
  ScopePool::Keep(scope_);
  return Value::Of(
      runtime_.arena().New<Callable>(Callable::Type::kMacro, macro.name, Value(), &macro, scope_));
}

Value Interpreter::CallMacro(const Callable& callable, const Arguments& arguments) {
  const Enter enter(*this, callable.scope);
  BindParameters(*callable.macro, arguments, scope_);
  return Capture(callable.macro->body);
}

// Positional, named, then defaults, which see the parameters before them.
void Interpreter::BindParameters(const Macro& macro, const Arguments& arguments, Scope* scope) {
  const size_t count = macro.parameters.size(), given = arguments.positional.size();
  if (given > count && !macro.uses_varargs) {
    ThrowRuntime(Concat("the macro '", macro.name, "' takes at most ", count, " arguments"));
  }
  std::vector<std::pair<std::string_view, Value>> rest = arguments.named;
  const auto take = [&](std::string_view name) -> std::optional<Value> {
    runtime_.ChargeSearch(rest.size(), name);
    for (auto named = rest.begin(); named != rest.end(); ++named) {
      if (named->first != name) continue;
      const Value value = named->second;
      rest.erase(named);
      return value;
    }
    return std::nullopt;
  };
  for (size_t i = 0; i < count; ++i) {
    const std::string_view name = macro.parameters[i];
    const size_t first_default = count - macro.defaults.size();
    if (i < given) {
      scope->Set(runtime_, name, arguments.positional[i]);
    } else if (const auto value = take(name)) {
      scope->Set(runtime_, name, *value);
    } else if (i >= first_default) {
      scope->Set(runtime_, name, Evaluate(*macro.defaults[i - first_default]));
    } else {
      const std::string hint = Concat("parameter '", name, "' was not provided");
      scope->Set(runtime_, name,
                 runtime_.Undefined(UndefinedInfo::How::kHint, {}, runtime_.Text(hint)));
    }
  }
  if (macro.uses_caller) {
    const auto caller = take("caller");
    const Value none = runtime_.Undefined(UndefinedInfo::How::kHint, {},
                                          Value::String("the macro was called without a caller"));
    scope->Set(runtime_, "caller", caller ? *caller : none);
  }
  if (macro.uses_kwargs) {
    std::vector<DictEntry> entries;
    for (const auto& [name, value] : rest) entries.push_back({Value::String(name), value});
    scope->Set(runtime_, "kwargs", runtime_.MakeDict(entries));
  } else if (!rest.empty()) {
    ThrowRuntime(Concat("the macro '", macro.name, "' has no parameter '", rest[0].first, "'"));
  }
  if (macro.uses_varargs) {
    const auto from = arguments.positional.begin() + static_cast<ptrdiff_t>(std::min(given, count));
    scope->Set(runtime_, "varargs", runtime_.MakeList({from, arguments.positional.end()}, true));
  }
}

}  // namespace sparsekv::chat
