#include "coordinator/chat/loop.h"

#include "coordinator/chat/ast.h"
#include "coordinator/chat/interpreter.h"
#include "coordinator/chat/operators.h"

namespace sparsekv::chat {

// The next item that the condition lets through.
bool Loop::Take(Interpreter& interpreter, Value* item) {
  if (read != nullptr) {
    if (read_next == read_size) return false;
    *item = read[read_next++];
    return true;
  }
  while (source.Next(interpreter.runtime(), item)) {
    if (statement->condition == nullptr) return true;
    if (interpreter.Accepts(*statement, outside, *item)) return true;
  }
  return false;
}

bool Loop::Next(Interpreter& interpreter, Value* item) {
  if (has_after) {
    *item = after;
    has_after = false;
  } else if (ended || !Take(interpreter, item)) {
    ended = true;
    return false;
  }
  ++index0;
  before = current;
  current = *item;
  return true;
}

bool Loop::PeekNext(Interpreter& interpreter) {
  if (has_after) return true;
  if (ended) return false;
  has_after = Take(interpreter, &after);
  ended = !has_after;
  return has_after;
}

int64_t Loop::Length(Interpreter& interpreter) {
  Runtime& runtime = interpreter.runtime();
  if (has_length) return static_cast<int64_t>(chat::Length(runtime, iterable));
  if (read == nullptr) {
    std::vector<Value> rest;
    for (Value item; !ended && Take(interpreter, &item);) {
      rest.push_back(item);
      runtime.CheckItems(1);
    }
    Value* items = runtime.arena().Array<Value>(rest.size() + 1);
    std::copy(rest.begin(), rest.end(), items);
    read = items;
    read_size = rest.size();
    read_next = 0;
    length_before = index0 + 1 + (has_after ? 1 : 0);
  }
  return length_before + static_cast<int64_t>(read_size);
}

std::optional<Value> Loop::Attribute(Interpreter& interpreter, std::string_view name) {
  const auto undefined = [&](std::string_view hint) {
    return interpreter.runtime().Undefined(UndefinedInfo::How::kHint, {}, Value::String(hint));
  };
  if (name == "index") return Value::Int(index0 + 1);
  if (name == "index0") return Value::Int(index0);
  if (name == "first") return Value::Bool(index0 == 0);
  if (name == "last") return Value::Bool(!PeekNext(interpreter));
  if (name == "length") return Value::Int(Length(interpreter));
  if (name == "revindex") return Value::Int(Length(interpreter) - index0);
  if (name == "revindex0") return Value::Int(Length(interpreter) - index0 - 1);
  if (name == "depth") return Value::Int(1);
  if (name == "depth0") return Value::Int(0);
  if (name == "previtem") return index0 == 0 ? undefined("there is no previous item") : before;
  if (name == "nextitem") return PeekNext(interpreter) ? after : undefined("there is no next item");
  return std::nullopt;
}

}  // namespace sparsekv::chat
