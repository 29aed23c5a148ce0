// Python's arithmetic. Integers are 64 bits here, and what leaves them is an error.
#include <cmath>

#include "base/concat.h"
#include "coordinator/chat/format.h"
#include "coordinator/chat/html.h"
#include "coordinator/chat/operators.h"

namespace sparsekv::chat {

using Kind = Value::Kind;

namespace {

constexpr const char* kNames[] = {"+", "-", "*", "/", "//", "%", "**"};

[[noreturn]] void ThrowOperands(BinaryOp op, const Value& a, const Value& b) {
  ThrowRuntime(Concat("unsupported operands for ", kNames[static_cast<int>(op)], ": '", TypeName(a),
                      "' and '", TypeName(b), "'"));
}

[[noreturn]] void ThrowRange() { ThrowRuntime("an integer leaves 64 bits"); }

int64_t Power(int64_t base, int64_t exponent) {
  int64_t result = 1;
  while (true) {
    if (exponent % 2 == 1 && __builtin_mul_overflow(result, base, &result)) ThrowRange();
    exponent /= 2;
    if (exponent == 0) return result;
    if (__builtin_mul_overflow(base, base, &base)) ThrowRange();
  }
}

void CheckDivisor(bool zero) {
  if (zero) ThrowRuntime("division by zero");
}

int64_t FloorDivide(int64_t a, int64_t b) {
  if (b == -1) {
    if (a == INT64_MIN) ThrowRange();
    return -a;
  }
  return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

Value Integers(BinaryOp op, int64_t a, int64_t b) {
  int64_t result = 0;
  switch (op) {
    case BinaryOp::kAdd:
      if (__builtin_add_overflow(a, b, &result)) ThrowRange();
      return Value::Int(result);
    case BinaryOp::kSub:
      if (__builtin_sub_overflow(a, b, &result)) ThrowRange();
      return Value::Int(result);
    case BinaryOp::kMul:
      if (__builtin_mul_overflow(a, b, &result)) ThrowRange();
      return Value::Int(result);
    case BinaryOp::kDiv:
      CheckDivisor(b == 0);
      return Value::Float(static_cast<double>(a) / static_cast<double>(b));
    case BinaryOp::kFloorDiv:
      CheckDivisor(b == 0);
      return Value::Int(FloorDivide(a, b));
    case BinaryOp::kMod:
      CheckDivisor(b == 0);
      if (b == -1) return Value::Int(0);
      return Value::Int(a % b + (a % b != 0 && (a < 0) != (b < 0) ? b : 0));
    case BinaryOp::kPow:
      if (b >= 0) return Value::Int(Power(a, b));
      CheckDivisor(a == 0);
      return Value::Float(std::pow(static_cast<double>(a), static_cast<double>(b)));
  }
  return {};
}

double FloatModulo(double a, double b) {
  const double rest = std::fmod(a, b);
  if (rest == 0) return std::copysign(0.0, b);
  return (rest < 0) != (b < 0) ? rest + b : rest;
}

Value Floats(BinaryOp op, double a, double b) {
  switch (op) {
    case BinaryOp::kAdd:
      return Value::Float(a + b);
    case BinaryOp::kSub:
      return Value::Float(a - b);
    case BinaryOp::kMul:
      return Value::Float(a * b);
    case BinaryOp::kDiv:
      CheckDivisor(b == 0);
      return Value::Float(a / b);
    case BinaryOp::kFloorDiv:
      CheckDivisor(b == 0);
      return Value::Float(std::floor((a - FloatModulo(a, b)) / b + 0.5));
    case BinaryOp::kMod:
      CheckDivisor(b == 0);
      return Value::Float(FloatModulo(a, b));
    case BinaryOp::kPow:
      CheckDivisor(a == 0 && b < 0);
      if (a < 0 && b != std::floor(b)) ThrowRuntime("complex numbers are not supported");
      return Value::Float(std::pow(a, b));
  }
  return {};
}

// A Markup escapes what it is joined with.
Value JoinTexts(Runtime& runtime, const Value& a, const Value& b) {
  const bool safe = a.safe() || b.safe();
  std::string joined;
  const auto append = [&](const Value& part) {
    runtime.CheckText(joined.size() + part.text().size());
    if (safe && !part.safe()) {
      AppendHtmlEscaped(part.text(), &joined);
    } else {
      joined += part.text();
    }
  };
  append(a);
  append(b);
  return runtime.Text(joined, safe);
}

Value JoinLists(Runtime& runtime, const Value& a, const Value& b) {
  const size_t size = a.list().size + b.list().size;
  runtime.CheckItems(size);
  Value* items = runtime.arena().Array<Value>(size);
  Value* next = items;
  for (const Value& item : a.list()) *next++ = item;
  for (const Value& item : b.list()) *next++ = item;
  return Value::Of(runtime.arena().New<List>(items, size), a.Is(Kind::kTuple));
}

Value Repeat(Runtime& runtime, const Value& value, int64_t count) {
  const size_t times = count < 0 ? 0 : static_cast<size_t>(count);
  if (value.Is(Kind::kString)) {
    const std::string_view text = value.text();
    if (!text.empty() && times > runtime.limits().output_bytes / text.size()) {
      ThrowLimit("output_bytes");
    }
    std::string repeated;
    for (size_t i = 0; i < (text.empty() ? 0 : times); ++i) repeated += text;
    return runtime.Text(repeated, value.safe());
  }
  const List& list = value.list();
  if (list.size > 0 && times > runtime.limits().items / list.size) ThrowLimit("items");
  std::vector<Value> repeated;
  for (size_t i = 0; i < (list.size == 0 ? 0 : times); ++i) {
    repeated.insert(repeated.end(), list.begin(), list.end());
  }
  return runtime.MakeList(repeated, value.Is(Kind::kTuple));
}

bool CanRepeat(const Value& value) { return value.Is(Kind::kString) || value.IsSequence(); }

}  // namespace

int64_t Truncate(double value) {
  if (!(value > -9.2e18 && value < 9.2e18)) ThrowRange();
  return static_cast<int64_t>(value);
}

Value Arithmetic(Runtime& runtime, BinaryOp op, const Value& a, const Value& b) {
  if (op == BinaryOp::kMod && a.Is(Kind::kString)) {
    if (b.Is(Kind::kTuple))
      return FormatPercent(runtime, a.text(), {b.list().begin(), b.list().end()});
    return FormatPercent(runtime, a.text(), {b});
  }
  if (a.IsNumber() && b.IsNumber()) {
    if (a.IsInteger() && b.IsInteger()) return Integers(op, a.integer(), b.integer());
    return Floats(op, a.number(), b.number());
  }
  if (a.Is(Kind::kUndefined)) ThrowUndefined(a);
  if (b.Is(Kind::kUndefined)) ThrowUndefined(b);
  if (op == BinaryOp::kAdd) {
    if (a.Is(Kind::kString) && b.Is(Kind::kString)) return JoinTexts(runtime, a, b);
    if (a.IsSequence() && a.kind() == b.kind()) return JoinLists(runtime, a, b);
  }
  if (op == BinaryOp::kMul) {
    if (CanRepeat(a) && b.IsInteger()) return Repeat(runtime, a, b.integer());
    if (a.IsInteger() && CanRepeat(b)) return Repeat(runtime, b, a.integer());
  }
  ThrowOperands(op, a, b);
}

Value Negate(const Value& value) {
  if (value.Is(Kind::kUndefined)) ThrowUndefined(value);
  if (value.Is(Kind::kFloat)) return Value::Float(-value.floating());
  if (!value.IsInteger()) ThrowRuntime(Concat("a ", TypeName(value), " has no negative"));
  if (value.integer() == INT64_MIN) ThrowRange();
  return Value::Int(-value.integer());
}

}  // namespace sparsekv::chat
