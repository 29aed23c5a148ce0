#include "coordinator/chat/operators.h"

#include <algorithm>

#include "absl/hash/hash.h"
#include "base/concat.h"
#include "coordinator/chat/callable.h"
#include "coordinator/chat/cursor.h"
#include "coordinator/chat/text.h"

namespace sparsekv::chat {

using Kind = Value::Kind;

namespace {

bool EqualItems(Runtime& runtime, const List& a, const List& b) {
  if (a.size != b.size) return false;
  for (size_t i = 0; i < a.size; ++i) {
    if (!Equal(runtime, a.items[i], b.items[i])) return false;
  }
  return true;
}

bool EqualDicts(Runtime& runtime, const Dict& a, const Dict& b) {
  if (a.size != b.size) return false;
  for (const DictEntry& entry : a) {
    const DictEntry* other = Find(runtime, b, entry.key);
    if (other == nullptr || !Equal(runtime, entry.value, other->value)) return false;
  }
  return true;
}

bool LessItems(Runtime& runtime, const List& a, const List& b) {
  for (size_t i = 0; i < a.size && i < b.size; ++i) {
    if (!Equal(runtime, a.items[i], b.items[i])) return Less(runtime, a.items[i], b.items[i]);
  }
  return a.size < b.size;
}

[[noreturn]] void ThrowNoOrder(const Value& a, const Value& b) {
  ThrowRuntime(Concat("'", TypeName(a), "' and '", TypeName(b), "' cannot be ordered"));
}

}  // namespace

std::string TypeName(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return "Undefined";
    case Kind::kNone:
      return "NoneType";
    case Kind::kBool:
      return "bool";
    case Kind::kInt:
      return "int";
    case Kind::kFloat:
      return "float";
    case Kind::kString:
      return value.safe() ? "Markup" : "str";
    case Kind::kList:
      return "list";
    case Kind::kTuple:
      return "tuple";
    case Kind::kDict:
      return "dict";
    case Kind::kView:
      return value.view().what == DictView::What::kKeys     ? "dict_keys"
             : value.view().what == DictView::What::kValues ? "dict_values"
                                                            : "dict_items";
    case Kind::kRange:
      return "range";
    case Kind::kIterator:
      return "generator";
    case Kind::kNamespace:
      return "Namespace";
    case Kind::kCallable:
      return value.callable().type == Callable::Type::kMacro ? "Macro" : "function";
    case Kind::kLoop:
      return "LoopContext";
  }
  return "object";
}

std::string UndefinedMessage(const Value& value) {
  const UndefinedInfo* info = value.undefined();
  if (info == nullptr) return "a value is undefined";
  const bool text = info->name.Is(Kind::kString);
  const std::string name = text                        ? std::string(info->name.text())
                           : info->name.Is(Kind::kInt) ? Concat(info->name.integer())
                                                       : TypeName(info->name);
  const std::string owner =
      info->object.Is(Kind::kNone) ? "None" : Concat(TypeName(info->object), " object");
  switch (info->how) {
    case UndefinedInfo::How::kName:
      return Concat("'", name, "' is undefined");
    case UndefinedInfo::How::kMember:
      if (!text) return Concat(owner, " has no element ", name);
      return Concat("'", owner, "' has no attribute '", name, "'");
    case UndefinedInfo::How::kUnsafe:
      return Concat("'", name, "' of a ", TypeName(info->object), " is not allowed in templates");
    case UndefinedInfo::How::kHint:
      break;
  }
  return name;
}

void ThrowUndefined(const Value& value) { Throw(ErrorKind::kUndefined, UndefinedMessage(value)); }

size_t HashText(std::string_view text) { return absl::HashOf(text); }

void CheckHashable(const Value& key) {
  if (key.Is(Kind::kList) || key.Is(Kind::kDict)) {
    ThrowRuntime(Concat("a ", TypeName(key), " cannot be a key"));
  }
}

bool Truth(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBool:
    case Kind::kInt:
      return value.integer() != 0;
    case Kind::kFloat:
      return value.floating() != 0;
    case Kind::kString:
      return !value.text().empty();
    case Kind::kList:
    case Kind::kTuple:
      return value.list().size > 0;
    case Kind::kDict:
      return value.dict().size > 0;
    case Kind::kView:
      return value.view().dict->size > 0;
    case Kind::kRange:
      return value.range().size > 0;
    default:
      return true;
  }
}

bool Equal(Runtime& runtime, const Value& a, const Value& b) {
  runtime.Charge();
  if (a.IsNumber() && b.IsNumber()) {
    if (a.IsInteger() && b.IsInteger()) return a.integer() == b.integer();
    return a.number() == b.number();
  }
  if (a.kind() != b.kind()) return false;
  const Runtime::Depth depth(runtime);
  switch (a.kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return true;
    case Kind::kString:
      runtime.ChargeBytes(std::min(a.text().size(), b.text().size()));
      return a.text() == b.text();
    case Kind::kList:
    case Kind::kTuple:
      return EqualItems(runtime, a.list(), b.list());
    case Kind::kDict:
      return EqualDicts(runtime, a.dict(), b.dict());
    case Kind::kRange:
      return a.range().size == b.range().size &&
             (a.range().size == 0 || (a.range().start == b.range().start &&
                                      (a.range().size == 1 || a.range().step == b.range().step)));
    default:
      return a.identity() == b.identity();
  }
}

bool Less(Runtime& runtime, const Value& a, const Value& b) {
  runtime.Charge();
  if (a.IsNumber() && b.IsNumber()) {
    if (a.IsInteger() && b.IsInteger()) return a.integer() < b.integer();
    return a.number() < b.number();
  }
  if (a.Is(Kind::kUndefined)) ThrowUndefined(a);
  if (b.Is(Kind::kUndefined)) ThrowUndefined(b);
  if (a.kind() != b.kind()) ThrowNoOrder(a, b);
  const Runtime::Depth depth(runtime);
  if (a.Is(Kind::kString)) {  // the order of UTF-8 is the order of code points
    runtime.ChargeBytes(std::min(a.text().size(), b.text().size()));
    return a.text() < b.text();
  }
  if (a.IsSequence()) return LessItems(runtime, a.list(), b.list());
  ThrowNoOrder(a, b);
}

bool Compare(Runtime& runtime, CompareOp op, const Value& a, const Value& b) {
  switch (op) {
    case CompareOp::kEq:
      return Equal(runtime, a, b);
    case CompareOp::kNe:
      return !Equal(runtime, a, b);
    case CompareOp::kLt:
      return Less(runtime, a, b);
    case CompareOp::kGt:
      return Less(runtime, b, a);
    case CompareOp::kLe:  // not !(b < a): NaN is in no order
      return Less(runtime, a, b) || Equal(runtime, a, b);
    case CompareOp::kGe:
      return Less(runtime, b, a) || Equal(runtime, a, b);
    case CompareOp::kIn:
      return Contains(runtime, b, a);
    case CompareOp::kNotIn:
      return !Contains(runtime, b, a);
  }
  return false;
}

bool Contains(Runtime& runtime, const Value& container, const Value& item) {
  if (container.Is(Kind::kString)) {
    if (!item.Is(Kind::kString)) {
      ThrowRuntime(Concat("'in' of a string requires a string on its left, not ", TypeName(item)));
    }
    runtime.ChargeBytes(container.text().size() + item.text().size());
    return FindText(container.text(), item.text()) != std::string_view::npos;
  }
  if (container.Is(Kind::kDict)) {
    CheckHashable(item);
    return Find(runtime, container.dict(), item) != nullptr;
  }
  Cursor cursor = Iterate(container);
  for (Value next; cursor.Next(runtime, &next);) {
    if (Equal(runtime, next, item)) return true;
  }
  return false;
}

size_t Length(Runtime& runtime, const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return 0;
    case Kind::kString:
      runtime.ChargeBytes(value.text().size());
      return CountCharacters(value.text());
    case Kind::kList:
    case Kind::kTuple:
      return value.list().size;
    case Kind::kDict:
      return value.dict().size;
    case Kind::kView:
      return value.view().dict->size;
    case Kind::kRange:
      return value.range().size;
    default:
      ThrowRuntime(Concat("a ", TypeName(value), " has no length"));
  }
}

const DictEntry* Find(Runtime& runtime, const Dict& dict, const Value& key) {
  if (dict.index != nullptr && key.Is(Kind::kString)) {
    runtime.ChargeBytes(key.text().size());
    for (size_t slot = HashText(key.text()) & dict.mask;; slot = (slot + 1) & dict.mask) {
      runtime.Charge();
      if (dict.index[slot] == 0) return nullptr;
      const DictEntry& entry = dict.entries[dict.index[slot] - 1];
      if (entry.key.text() == key.text()) return &entry;
    }
  }
  for (const DictEntry& entry : dict) {
    if (Equal(runtime, entry.key, key)) return &entry;
  }
  return nullptr;
}

}  // namespace sparsekv::chat
