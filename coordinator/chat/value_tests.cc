// What stands after `is`.
#include <algorithm>

#include "absl/container/flat_hash_map.h"
#include "base/concat.h"
#include "coordinator/chat/builtins.h"
#include "coordinator/chat/cursor.h"
#include "coordinator/chat/interpreter.h"
#include "coordinator/chat/operators.h"
#include "coordinator/chat/text.h"
#include "coordinator/chat/unicode.h"

namespace sparsekv::chat {

using Kind = Value::Kind;

namespace {

using Test = bool (*)(Runtime&, const Value& value, const Value& other);

bool IsDivisible(Runtime& runtime, const Value& value, const Value& by) {
  return Equal(runtime, Arithmetic(runtime, BinaryOp::kMod, value, by), Value::Int(0));
}

// str.islower and str.isupper: a cased character, and none of the other case.
bool HasCase(Runtime& runtime, const Value& value, bool upper) {
  const std::string_view text = Str(runtime, value);
  runtime.ChargeBytes(text.size());
  bool any = false;
  for (size_t byte = 0; byte < text.size(); byte += CharacterLength(text[byte])) {
    const char32_t c = CharacterAt(text, byte);
    if (upper ? IsLower(c) : IsUpper(c)) return false;
    any |= upper ? IsUpper(c) : IsLower(c);
  }
  return any;
}

bool IsSame(Runtime& runtime, const Value& a, const Value& b) {
  if (a.kind() != b.kind()) return false;
  if (a.IsNumber() || a.Is(Kind::kNone) || a.Is(Kind::kString)) return Equal(runtime, a, b);
  return a.identity() == b.identity();
}

struct Entry {
  Test test;
  bool has_operand = false;
};

template <Kind... kKinds>
bool IsKind(Runtime&, const Value& value, const Value&) {
  return (value.Is(kKinds) || ...);
}

template <CompareOp kOp>
bool Compares(Runtime& runtime, const Value& value, const Value& other) {
  return Compare(runtime, kOp, value, other);
}

template <bool kWanted>
bool IsBool(Runtime&, const Value& value, const Value&) {
  return value.Is(Kind::kBool) && value.boolean() == kWanted;
}

template <bool (*kHas)(std::string_view)>
bool IsNameOf(Runtime& runtime, const Value& value, const Value&) {
  if (!value.Is(Kind::kString)) return false;
  runtime.ChargeBytes(value.text().size());
  return kHas(value.text());
}

const absl::flat_hash_map<std::string_view, Entry>& Table() {
  using R = Runtime;
  using V = Value;
  static const auto* table = new absl::flat_hash_map<std::string_view, Entry>{
      {"defined", {[](R&, const V& v, const V&) { return !v.Is(Kind::kUndefined); }}},
      {"undefined", {IsKind<Kind::kUndefined>}},
      {"none", {IsKind<Kind::kNone>}},
      {"boolean", {IsKind<Kind::kBool>}},
      {"true", {IsBool<true>}},
      {"false", {IsBool<false>}},
      {"integer", {IsKind<Kind::kInt>}},
      {"float", {IsKind<Kind::kFloat>}},
      {"number", {IsKind<Kind::kBool, Kind::kInt, Kind::kFloat>}},
      {"string", {IsKind<Kind::kString>}},
      {"mapping", {IsKind<Kind::kDict>}},
      {"sequence",
       {IsKind<Kind::kString, Kind::kList, Kind::kTuple, Kind::kDict, Kind::kRange,
               Kind::kUndefined>}},
      {"iterable", {[](R&, const V& v, const V&) { return IsIterable(v) || v.Is(Kind::kLoop); }}},
      {"callable", {IsKind<Kind::kCallable>}},
      {"escaped", {[](R&, const V& v, const V&) { return v.Is(Kind::kString) && v.safe(); }}},
      {"lower", {[](R& r, const V& v, const V&) { return HasCase(r, v, false); }}},
      {"upper", {[](R& r, const V& v, const V&) { return HasCase(r, v, true); }}},
      {"odd", {[](R& r, const V& v, const V&) {
         return Equal(r, Arithmetic(r, BinaryOp::kMod, v, V::Int(2)), V::Int(1));
       }}},
      {"even", {[](R& r, const V& v, const V&) { return IsDivisible(r, v, V::Int(2)); }}},
      {"divisibleby", {IsDivisible, true}},
      {"sameas", {IsSame, true}},
      {"in", {Compares<CompareOp::kIn>, true}},
      {"filter", {IsNameOf<HasFilter>}},
      {"test", {IsNameOf<HasTest>}},
      {"==", {Compares<CompareOp::kEq>, true}},
      {"eq", {Compares<CompareOp::kEq>, true}},
      {"equalto", {Compares<CompareOp::kEq>, true}},
      {"!=", {Compares<CompareOp::kNe>, true}},
      {"ne", {Compares<CompareOp::kNe>, true}},
      {"<", {Compares<CompareOp::kLt>, true}},
      {"lt", {Compares<CompareOp::kLt>, true}},
      {"lessthan", {Compares<CompareOp::kLt>, true}},
      {"<=", {Compares<CompareOp::kLe>, true}},
      {"le", {Compares<CompareOp::kLe>, true}},
      {">", {Compares<CompareOp::kGt>, true}},
      {"gt", {Compares<CompareOp::kGt>, true}},
      {"greaterthan", {Compares<CompareOp::kGt>, true}},
      {">=", {Compares<CompareOp::kGe>, true}},
      {"ge", {Compares<CompareOp::kGe>, true}},
  };
  return *table;
}

}  // namespace

bool ApplyTest(Interpreter& interpreter, std::string_view name, const Value& value,
               const Arguments& arguments) {
  const auto found = Table().find(name);
  if (found == Table().end()) {
    Throw(ErrorKind::kUnsupported, Concat("the test '", name, "' is not supported"));
  }
  const Entry& entry = found->second;
  if (!entry.has_operand) {
    Bind(name, arguments, {});
    return entry.test(interpreter.runtime(), value, {});
  }
  const Bound bound = Bind(name, arguments, {"other"}, 1);
  return entry.test(interpreter.runtime(), value, *bound[0]);
}

bool HasTest(std::string_view name) { return Table().contains(name); }

}  // namespace sparsekv::chat
