#include "coordinator/chat/cursor.h"

#include "base/concat.h"
#include "coordinator/chat/operators.h"
#include "coordinator/chat/text.h"

namespace sparsekv::chat {

using Kind = Value::Kind;

namespace {

Value ViewItem(Runtime& runtime, const DictView& view, size_t position) {
  const DictEntry& entry = view.dict->entries[position];
  if (view.what == DictView::What::kKeys) return entry.key;
  if (view.what == DictView::What::kValues) return entry.value;
  return runtime.Pair(entry.key, entry.value);
}

}  // namespace

bool Cursor::Next(Runtime& runtime, Value* item) {
  runtime.Charge();
  const size_t at = position_++;
  switch (source_.kind()) {
    case Kind::kList:
    case Kind::kTuple:
      if (at >= source_.list().size) return false;
      *item = source_.list().items[at];
      return true;
    case Kind::kDict:
      if (at >= source_.dict().size) return false;
      *item = source_.dict().entries[at].key;
      return true;
    case Kind::kView:
      if (at >= source_.view().dict->size) return false;
      *item = ViewItem(runtime, source_.view(), at);
      return true;
    case Kind::kRange:
      if (at >= source_.range().size) return false;
      *item = RangeItem(source_.range(), at);
      return true;
    case Kind::kString: {
      const std::string_view text = source_.text();
      if (at >= text.size()) return false;
      const size_t length = CharacterLength(text[at]);
      position_ = at + length;
      *item = Value::String(text.substr(at, length));
      return true;
    }
    case Kind::kIterator: {
      Iterator& iterator = source_.iterator();
      if (iterator.next >= iterator.items.size) return false;
      *item = iterator.items.items[iterator.next++];
      return true;
    }
    default:
      return false;
  }
}

Cursor Iterate(const Value& value) {
  if (!IsIterable(value)) ThrowRuntime(Concat("a ", TypeName(value), " is not iterable"));
  Cursor cursor;
  cursor.source_ = value;
  return cursor;
}

bool IsIterable(const Value& value) { return HasLength(value) || value.Is(Kind::kIterator); }

bool HasLength(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kString:
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kDict:
    case Kind::kView:
    case Kind::kRange:
      return true;
    default:
      return false;
  }
}

std::vector<Value> Items(Runtime& runtime, const Value& value) {
  std::vector<Value> items;
  Cursor cursor = Iterate(value);
  for (Value item; cursor.Next(runtime, &item);) {
    items.push_back(item);
    if (items.size() > runtime.limits().items) ThrowLimit("items");
  }
  return items;
}

}  // namespace sparsekv::chat
