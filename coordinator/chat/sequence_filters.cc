// Filters over sequences and dictionaries. What Python would compute when asked (map, select, ...)
// is computed at once: nothing that a template can do sees the difference but an error in an item
// that it never reads.
#include <algorithm>

#include "absl/strings/ascii.h"
#include "base/concat.h"
#include "coordinator/chat/builtins.h"
#include "coordinator/chat/cursor.h"
#include "coordinator/chat/filter_table.h"
#include "coordinator/chat/interpreter.h"
#include "coordinator/chat/numbers.h"
#include "coordinator/chat/operators.h"
#include "coordinator/chat/text.h"

namespace sparsekv::chat {

using Kind = Value::Kind;

Value Path(Interpreter& interpreter, const Value& value, const Value& path) {
  if (path.Is(Kind::kNone)) return value;
  if (!path.Is(Kind::kString)) return interpreter.Subscript(value, path);
  Runtime& runtime = interpreter.runtime();
  Value at = value;
  std::string_view rest = path.text();
  for (bool more = true; more;) {
    const size_t dot = rest.find('.');
    const std::string_view part = rest.substr(0, dot);
    more = dot != std::string_view::npos;
    if (more) rest.remove_prefix(dot + 1);
    runtime.Charge(1 + part.size() / 8);
    const bool digits = !part.empty() && std::all_of(part.begin(), part.end(), [](unsigned char c) {
      return absl::ascii_isdigit(c);
    });
    const Value key = digits ? Value::Int(ParseInteger(part).value_or(0)) : Value::String(part);
    at = interpreter.Subscript(at, key);
  }
  return at;
}

namespace {

Value FoldCase(Runtime& runtime, const Value& value) {
  return value.Is(Kind::kString) ? runtime.Text(Lower(value.text())) : value;
}

// What min, max, sort and unique go by.
struct Key {
  Value attribute = Value::None();
  bool case_sensitive = false;

  Value Of(Interpreter& interpreter, const Value& item) const {
    const Value value = Path(interpreter, item, attribute);
    return case_sensitive ? value : FoldCase(interpreter.runtime(), value);
  }
};

Key MakeKey(const std::optional<Value>& case_sensitive, const std::optional<Value>& attribute) {
  return {attribute ? *attribute : Value::None(), TruthArgument(case_sensitive, false)};
}

Value Count(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  Bind("length", arguments, {});
  return Value::Int(static_cast<int64_t>(Length(interpreter.runtime(), input)));
}

Value MakeListOf(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  Bind("list", arguments, {});
  return interpreter.runtime().MakeList(Items(interpreter.runtime(), input));
}

Value First(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  Bind("first", arguments, {});
  Value item;
  Cursor cursor = Iterate(input);
  if (cursor.Next(interpreter.runtime(), &item)) return item;
  return interpreter.runtime().Undefined(UndefinedInfo::How::kHint, {},
                                         Value::String("the first item of nothing is undefined"));
}

Value Last(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  Bind("last", arguments, {});
  if (!HasLength(input) || input.Is(Kind::kUndefined)) {
    ThrowRuntime(Concat("a ", TypeName(input), " cannot be reversed"));
  }
  if (input.Is(Kind::kString) || input.IsSequence()) {
    if (const auto item = Item(interpreter.runtime(), input, Value::Int(-1))) return *item;
  } else if (const auto items = Items(interpreter.runtime(), input); !items.empty()) {
    return items.back();
  }
  return interpreter.runtime().Undefined(UndefinedInfo::How::kHint, {},
                                         Value::String("the last item of nothing is undefined"));
}

Value Reverse(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  Runtime& runtime = interpreter.runtime();
  Bind("reverse", arguments, {});
  if (input.Is(Kind::kString)) {
    return Slice(runtime, input, Value::None(), Value::None(), Value::Int(-1));
  }
  std::vector<Value> items = Items(runtime, input);
  std::reverse(items.begin(), items.end());
  return input.Is(Kind::kIterator) ? runtime.MakeList(items) : runtime.MakeIterator(items);
}

Value Join(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  Runtime& runtime = interpreter.runtime();
  const Bound bound = Bind("join", arguments, {"d", "attribute"});
  const std::string_view between = bound[0] ? Str(runtime, *bound[0]) : "";
  const Value path = bound[1] ? *bound[1] : Value::None();
  std::string text;
  bool begun = false;
  Cursor cursor = Iterate(input);
  for (Value item; cursor.Next(runtime, &item); begun = true) {
    const std::string_view part = Str(runtime, Path(interpreter, item, path));
    if (begun) text += between;
    text += part;
    runtime.ChargeBytes(part.size() + between.size());
    if (text.size() > runtime.limits().output_bytes) ThrowLimit("output_bytes");
  }
  return runtime.Text(text);
}

Value ItemPairs(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  Runtime& runtime = interpreter.runtime();
  Bind("items", arguments, {});
  if (input.Is(Kind::kUndefined)) return runtime.MakeIterator({});
  if (!input.Is(Kind::kDict)) {
    ThrowRuntime(Concat("items takes a dictionary, not ", TypeName(input)));
  }
  return runtime.MakeIterator(Items(runtime, runtime.View(input.dict(), DictView::What::kItems)));
}

Value Map(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  Runtime& runtime = interpreter.runtime();
  if (!Truth(input)) return runtime.MakeIterator({});
  std::vector<Value> mapped;
  if (arguments.positional.empty()) {
    const Bound bound = Bind("map", arguments, {"attribute", "default"}, 1);
    const bool has_default = bound[1] && !bound[1]->Is(Kind::kNone);
    for (const Value& item : Items(runtime, input)) {
      const Value value = Path(interpreter, item, *bound[0]);
      mapped.push_back(has_default && value.Is(Kind::kUndefined) ? *bound[1] : value);
    }
  } else {
    const std::string_view name = TextArgument("map", arguments.positional[0]);
    Arguments rest{{arguments.positional.begin() + 1, arguments.positional.end()}, arguments.named};
    for (const Value& item : Items(runtime, input)) {
      mapped.push_back(ApplyFilter(interpreter, name, item, rest));
    }
  }
  return runtime.MakeIterator(mapped);
}

// select, reject, selectattr and rejectattr: [attribute,] [test, arguments of the test].
template <bool kWanted, bool kAttribute>
Value Select(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  Runtime& runtime = interpreter.runtime();
  if (!Truth(input)) return runtime.MakeIterator({});
  const auto& given = arguments.positional;
  const size_t skip = kAttribute ? 1 : 0;
  if (given.size() < skip) ThrowRuntime("selectattr and rejectattr need an attribute");
  Arguments rest;
  if (given.size() > skip) {
    rest = {{given.begin() + static_cast<ptrdiff_t>(skip) + 1, given.end()}, arguments.named};
  }
  std::vector<Value> selected;
  for (const Value& item : Items(runtime, input)) {
    const Value value = kAttribute ? Path(interpreter, item, given[0]) : item;
    const bool holds =
        given.size() > skip
            ? ApplyTest(interpreter, TextArgument("select", given[skip]), value, rest)
            : Truth(value);
    if (holds == kWanted) selected.push_back(item);
  }
  return runtime.MakeIterator(selected);
}

// By several keys at once where the attribute is "a,b".
Value SortKey(Interpreter& interpreter, const Key& key, const Value& item) {
  if (!key.attribute.Is(Kind::kString)) return key.Of(interpreter, item);
  std::vector<Value> parts;
  for (const std::string_view path : Split(key.attribute.text(), ",", -1)) {
    parts.push_back(Key{Value::String(path), key.case_sensitive}.Of(interpreter, item));
  }
  return interpreter.runtime().MakeList(parts);
}

std::vector<Value> Sorted(Runtime& runtime, std::vector<std::pair<Value, Value>> keyed,
                          bool reverse) {
  if (reverse) std::reverse(keyed.begin(), keyed.end());  // equal ones keep their order, as there
  std::stable_sort(keyed.begin(), keyed.end(),
                   [&](const auto& a, const auto& b) { return Less(runtime, a.first, b.first); });
  if (reverse) std::reverse(keyed.begin(), keyed.end());
  std::vector<Value> items;
  for (const auto& [key, item] : keyed) items.push_back(item);
  return items;
}

Value Sort(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  Runtime& runtime = interpreter.runtime();
  const Bound bound = Bind("sort", arguments, {"reverse", "case_sensitive", "attribute"});
  const Key key = MakeKey(bound[1], bound[2]);
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : Items(runtime, input)) {
    keyed.emplace_back(SortKey(interpreter, key, item), item);
  }
  return runtime.MakeList(Sorted(runtime, std::move(keyed), TruthArgument(bound[0], false)));
}

Value DictSort(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  Runtime& runtime = interpreter.runtime();
  const Bound bound = Bind("dictsort", arguments, {"case_sensitive", "by", "reverse"});
  const std::string_view by = bound[1] ? TextArgument("dictsort", *bound[1]) : "key";
  if (by != "key" && by != "value") ThrowRuntime("dictsort goes by key or value");
  if (input.Is(Kind::kUndefined)) ThrowUndefined(input);
  if (!input.Is(Kind::kDict)) {
    ThrowRuntime(Concat("dictsort takes a dictionary, not ", TypeName(input)));
  }
  const bool fold = !TruthArgument(bound[0], false);
  std::vector<std::pair<Value, Value>> keyed;
  for (const DictEntry& entry : input.dict()) {
    const Value& key = by == "key" ? entry.key : entry.value;
    keyed.emplace_back(fold ? FoldCase(runtime, key) : key, runtime.Pair(entry.key, entry.value));
  }
  return runtime.MakeList(Sorted(runtime, std::move(keyed), TruthArgument(bound[2], false)));
}

Value Unique(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  Runtime& runtime = interpreter.runtime();
  const Bound bound = Bind("unique", arguments, {"case_sensitive", "attribute"});
  const Key key = MakeKey(bound[0], bound[1]);
  std::vector<Value> seen, unique;
  for (const Value& item : Items(runtime, input)) {
    const Value own = key.Of(interpreter, item);
    CheckHashable(own);
    const bool known = std::any_of(seen.begin(), seen.end(),
                                   [&](const Value& other) { return Equal(runtime, own, other); });
    if (known) continue;
    seen.push_back(own);
    unique.push_back(item);
  }
  return runtime.MakeIterator(unique);
}

template <bool kMost>
Value Extreme(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  Runtime& runtime = interpreter.runtime();
  const Bound bound = Bind(kMost ? "max" : "min", arguments, {"case_sensitive", "attribute"});
  const Key key = MakeKey(bound[0], bound[1]);
  std::optional<Value> best, best_key;
  for (const Value& item : Items(runtime, input)) {
    const Value own = key.Of(interpreter, item);
    if (best && !(kMost ? Less(runtime, *best_key, own) : Less(runtime, own, *best_key))) continue;
    best = item;
    best_key = own;
  }
  if (best) return *best;
  return runtime.Undefined(UndefinedInfo::How::kHint, {},
                           Value::String("the least or most of nothing is undefined"));
}

Value Sum(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  Runtime& runtime = interpreter.runtime();
  const Bound bound = Bind("sum", arguments, {"attribute", "start"});
  Value sum = bound[1] ? *bound[1] : Value::Int(0);
  for (const Value& item : Items(runtime, input)) {
    const Value value = bound[0] ? Path(interpreter, item, *bound[0]) : item;
    sum = Arithmetic(runtime, BinaryOp::kAdd, sum, value);
  }
  return sum;
}

constexpr std::pair<std::string_view, Filter> kFilters[] = {
    {"count", Count},
    {"dictsort", DictSort},
    {"first", First},
    {"items", ItemPairs},
    {"join", Join},
    {"last", Last},
    {"length", Count},
    {"list", MakeListOf},
    {"map", Map},
    {"max", Extreme<true>},
    {"min", Extreme<false>},
    {"reject", Select<false, false>},
    {"rejectattr", Select<false, true>},
    {"reverse", Reverse},
    {"select", Select<true, false>},
    {"selectattr", Select<true, true>},
    {"sort", Sort},
    {"sum", Sum},
    {"unique", Unique},
};

}  // namespace

std::span<const std::pair<std::string_view, Filter>> SequenceFilters() { return kFilters; }

}  // namespace sparsekv::chat
