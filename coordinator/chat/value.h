#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace sparsekv::chat {

struct List;
struct Dict;
struct DictView;
struct Range;
struct Iterator;
struct Namespace;
struct Callable;
struct Loop;
struct UndefinedInfo;

// A Python value as templates see it. Sixteen bytes, copied freely; what it points to lies in the
// arena of its rendering, or in what that rendering was given, and does not change: the sandbox has
// no list.append or dict.update. Namespaces, iterators and loops are the exceptions.
class Value {
 public:
  enum class Kind : uint8_t {
    kUndefined,
    kNone,
    kBool,
    kInt,
    kFloat,
    kString,
    kList,
    kTuple,
    kDict,
    kView,      // dict.keys(), .values(), .items()
    kRange,     // range(n)
    kIterator,  // what Python's generators are: always true, no length, read once
    kNamespace,
    kCallable,  // macros, methods, functions
    kLoop,      // `loop`
  };

  Value() : undefined_(nullptr) {}
  static Value None() { return Value(Kind::kNone); }
  static Value Bool(bool value) {
    Value made(Kind::kBool);
    made.integer_ = value;
    return made;
  }
  static Value Int(int64_t value) {
    Value made(Kind::kInt);
    made.integer_ = value;
    return made;
  }
  static Value Float(double value) {
    Value made(Kind::kFloat);
    made.float_ = value;
    return made;
  }
  // The text stays where it is. REQUIRES: it is valid UTF-8 of less than 4 GiB.
  static Value String(std::string_view text, bool safe = false) {
    Value made(Kind::kString);
    made.text_ = text.data();
    made.size_ = static_cast<uint32_t>(text.size());
    made.safe_ = safe;
    return made;
  }
  static Value Of(const List* list, bool tuple = false) {
    Value made(tuple ? Kind::kTuple : Kind::kList);
    made.list_ = list;
    return made;
  }
  static Value Of(const Dict* dict) { return Pointer(Kind::kDict, dict); }
  static Value Of(const DictView* view) { return Pointer(Kind::kView, view); }
  static Value Of(const Range* range) { return Pointer(Kind::kRange, range); }
  static Value Of(Iterator* iterator) { return Pointer(Kind::kIterator, iterator); }
  static Value Of(Namespace* names) { return Pointer(Kind::kNamespace, names); }
  static Value Of(const Callable* callable) { return Pointer(Kind::kCallable, callable); }
  static Value Of(Loop* loop) { return Pointer(Kind::kLoop, loop); }
  static Value Of(const UndefinedInfo* info) { return Pointer(Kind::kUndefined, info); }

  Kind kind() const { return kind_; }
  bool Is(Kind kind) const { return kind_ == kind; }
  bool IsSequence() const { return Is(Kind::kList) || Is(Kind::kTuple); }
  bool IsInteger() const { return Is(Kind::kInt) || Is(Kind::kBool); }  // as isinstance(x, int)
  bool IsNumber() const { return IsInteger() || Is(Kind::kFloat); }

  // REQUIRES: the kind that the name says.
  bool boolean() const { return integer_ != 0; }
  int64_t integer() const { return integer_; }  // of a bool too
  double floating() const { return float_; }
  double number() const { return Is(Kind::kFloat) ? float_ : static_cast<double>(integer_); }
  std::string_view text() const { return {text_, size_}; }
  bool safe() const { return safe_; }  // a markupsafe.Markup: the filters `safe` and `escape`
  const List& list() const { return *list_; }
  const Dict& dict() const { return *static_cast<const Dict*>(pointer_); }
  const DictView& view() const { return *static_cast<const DictView*>(pointer_); }
  const Range& range() const { return *static_cast<const Range*>(pointer_); }
  Iterator& iterator() const { return *static_cast<Iterator*>(const_cast<void*>(pointer_)); }
  Namespace& names() const { return *static_cast<Namespace*>(const_cast<void*>(pointer_)); }
  const Callable& callable() const { return *static_cast<const Callable*>(pointer_); }
  Loop& loop() const { return *static_cast<Loop*>(const_cast<void*>(pointer_)); }
  const UndefinedInfo* undefined() const { return undefined_; }  // null: nothing is known
  const void* identity() const { return pointer_; }

 private:
  explicit Value(Kind kind) : kind_(kind), pointer_(nullptr) {}
  static Value Pointer(Kind kind, const void* pointer) {
    Value made(kind);
    made.pointer_ = pointer;
    return made;
  }

  Kind kind_ = Kind::kUndefined;
  bool safe_ = false;
  uint32_t size_ = 0;  // bytes of a string
  union {
    int64_t integer_;
    double float_;
    const char* text_;
    const List* list_;
    const UndefinedInfo* undefined_;
    const void* pointer_;
  };
};

struct List {
  const Value* items = nullptr;
  size_t size = 0;
  const Value* begin() const { return items; }
  const Value* end() const { return items + size; }
};

struct DictEntry {
  Value key, value;
};

// In order of insertion. Large ones have an index over their string keys.
struct Dict {
  const DictEntry* entries = nullptr;
  size_t size = 0;
  const uint32_t* index = nullptr;  // open addressing; 0 = free, else entry + 1
  size_t mask = 0;                  // slots - 1, slots a power of two
  const DictEntry* begin() const { return entries; }
  const DictEntry* end() const { return entries + size; }
};

struct DictView {
  enum class What : uint8_t { kKeys, kValues, kItems };
  const Dict* dict;
  What what;
};

struct Range {
  int64_t start, stop, step;  // step != 0
  size_t size;
};

struct Iterator {
  List items;
  size_t next = 0;
};

struct UndefinedInfo {
  enum class How : uint8_t { kName, kMember, kUnsafe, kHint };
  How how;
  Value object;  // kMember, kUnsafe: what was asked
  Value name;    // the name or key asked for; kHint: the whole message
};

}  // namespace sparsekv::chat
