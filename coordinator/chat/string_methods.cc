#include "coordinator/chat/string_methods.h"

#include <algorithm>

#include "absl/container/flat_hash_map.h"
#include "base/concat.h"
#include "coordinator/chat/cursor.h"
#include "coordinator/chat/format.h"
#include "coordinator/chat/operators.h"
#include "coordinator/chat/text.h"
#include "coordinator/chat/unicode.h"

namespace sparsekv::chat {

using Kind = Value::Kind;

namespace {

using Method = Value (*)(Runtime&, const Value& self, const Arguments&);

bool Given(const std::optional<Value>& argument) { return argument && !argument->Is(Kind::kNone); }

template <std::string (*kMap)(std::string_view)>
Value MapText(Runtime& runtime, const Value& self, const Arguments& arguments) {
  Bind("a method of str", arguments, {});
  runtime.ChargeBytes(self.text().size());
  return runtime.Text(kMap(self.text()), self.safe());
}

template <bool kLeft, bool kRight>
Value Strip(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Bound bound = Bind("strip", arguments, {"chars"});
  std::optional<std::string_view> set;
  if (Given(bound[0])) set = TextArgument("strip", *bound[0]);
  std::string_view text = self.text();
  runtime.Charge(1 + text.size() * (set ? 1 + set->size() / 8 : 1) / 8);
  if (kLeft) text = StripLeft(text, set);
  if (kRight) text = StripRight(text, set);
  return Runtime::Part(text, self.safe());
}

// startswith and endswith, with one string or a tuple of them.
template <bool kStart>
Value HasAffix(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Bound bound = Bind(kStart ? "startswith" : "endswith", arguments, {"prefix"}, 1);
  if (bound[0]->Is(Kind::kUndefined)) ThrowRuntime("startswith takes a string, not Undefined");
  const bool one = bound[0]->Is(Kind::kString);
  if (!one && !bound[0]->Is(Kind::kTuple)) TextArgument("startswith", *bound[0]);
  const List list = one ? List{&*bound[0], 1} : bound[0]->list();
  for (const Value& item : list) {
    const std::string_view affix = TextArgument("startswith", item);
    runtime.ChargeBytes(affix.size());
    if (kStart ? self.text().starts_with(affix) : self.text().ends_with(affix)) {
      return Value::Bool(true);
    }
  }
  return Value::Bool(false);
}

// One cut more than a list may have items: the parts are then too many, and no more are made.
int64_t MostParts(Runtime& runtime, int64_t asked) {
  const auto limit = static_cast<int64_t>(runtime.limits().items);
  return asked < 0 ? limit : std::min(asked, limit);
}

template <bool kRight>
Value SplitText(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Bound bound = Bind("split", arguments, {"sep", "maxsplit"});
  const int64_t most = MostParts(runtime, IntegerArgument("split", bound[1], -1));
  const std::string_view text = self.text();
  runtime.Charge(1 + text.size() / 4);
  if (!Given(bound[0])) {
    return runtime.Texts(kRight ? SplitSpaceRight(text, most) : SplitSpace(text, most));
  }
  const std::string_view by = TextArgument("split", *bound[0]);
  if (by.empty()) ThrowRuntime("split: the separator is empty");
  if (!kRight) return runtime.Texts(Split(text, by, most));
  runtime.Charge(1 + text.size() * (by.size() / 64));
  return runtime.Texts(SplitRight(text, by, most));
}

Value Lines(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Bound bound = Bind("splitlines", arguments, {"keepends"});
  runtime.ChargeBytes(self.text().size());
  const int64_t most = MostParts(runtime, -1);
  return runtime.Texts(SplitLines(self.text(), most, TruthArgument(bound[0], false)));
}

Value Replace(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Bound bound = Bind("replace", arguments, {"old", "new", "count"}, 2);
  const std::string_view from = TextArgument("replace", *bound[0]);
  const std::string_view to = TextArgument("replace", *bound[1]);
  const int64_t most = IntegerArgument("replace", bound[2], -1);
  std::string_view rest = self.text();
  std::string out;
  runtime.ChargeBytes(rest.size());
  for (int64_t done = 0; most < 0 || done < most; ++done) {
    const size_t at = FindText(rest, from);
    if (at == std::string_view::npos) break;
    out += rest.substr(0, at);
    out += to;
    rest.remove_prefix(at + from.size());
    if (from.empty()) {  // before each character and at the end
      if (rest.empty()) break;
      const size_t length = CharacterLength(rest[0]);
      out += rest.substr(0, length);
      rest.remove_prefix(length);
    }
    runtime.ChargeBytes(to.size());
    if (out.size() > runtime.limits().output_bytes) ThrowLimit("output_bytes");
  }
  out += rest;
  return runtime.Text(out, self.safe());
}

struct Found {
  std::string_view part;     // what was looked for
  std::string_view text;     // the part that was searched
  size_t offset;             // its first byte
  std::optional<size_t> at;  // in that part
};

// Looks for the first argument between the characters that the others name.
Found Search(Runtime& runtime, const Value& self, const Arguments& arguments, bool right) {
  const Bound bound = Bind("find", arguments, {"sub", "start", "end"}, 1);
  const std::string_view part = TextArgument("find", *bound[0]);
  const Value searched =
      Slice(runtime, Value::String(self.text()), bound[1] ? *bound[1] : Value::None(),
            bound[2] ? *bound[2] : Value::None(), Value::None());
  const std::string_view text = searched.text();
  runtime.Charge(1 + text.size() / 32 + (right ? text.size() * (part.size() / 64) : 0));
  const size_t at = right ? text.rfind(part) : FindText(text, part);
  const size_t offset = static_cast<size_t>(text.data() - self.text().data());
  return {part, text, text.empty() ? 0 : offset,
          at == text.npos ? std::nullopt : std::optional(at)};
}

template <bool kRight, bool kThrows>
Value FindPart(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Found found = Search(runtime, self, arguments, kRight);
  if (found.at) {
    const std::string_view before = self.text().substr(0, found.offset + *found.at);
    return Value::Int(static_cast<int64_t>(CountCharacters(before)));
  }
  if (kThrows) ThrowRuntime("index: the text is not there");
  return Value::Int(-1);
}

Value Count(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Found found = Search(runtime, self, arguments, false);
  const std::string_view part = found.part;
  if (part.empty()) return Value::Int(static_cast<int64_t>(CountCharacters(found.text)) + 1);
  int64_t count = 0;
  std::string_view rest = found.text;
  for (size_t at = FindText(rest, part); at != rest.npos; at = FindText(rest, part)) {
    ++count;
    rest.remove_prefix(at + part.size());
  }
  return Value::Int(count);
}

Value Join(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Bound bound = Bind("join", arguments, {"iterable"}, 1);
  std::string out;
  bool begun = false;
  Cursor cursor = Iterate(*bound[0]);
  for (Value item; cursor.Next(runtime, &item); begun = true) {
    const std::string_view part = TextArgument("join", item);
    if (begun) out += self.text();
    out += part;
    runtime.ChargeBytes(part.size() + self.text().size());
    if (out.size() > runtime.limits().output_bytes) ThrowLimit("output_bytes");
  }
  return runtime.Text(out);
}

template <bool kRight>
Value Partition(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Bound bound = Bind("partition", arguments, {"sep"}, 1);
  const std::string_view text = self.text(), by = TextArgument("partition", *bound[0]);
  if (by.empty()) ThrowRuntime("partition: the separator is empty");
  runtime.Charge(1 + text.size() / 32 + (kRight ? text.size() * (by.size() / 64) : 0));
  const size_t at = kRight ? text.rfind(by) : FindText(text, by);
  const Value all = Value::String(text), none = Value::String("");
  if (at == text.npos) {
    return runtime.MakeList(kRight ? std::vector{none, none, all} : std::vector{all, none, none},
                            true);
  }
  return runtime.MakeList({Value::String(text.substr(0, at)), Value::String(by),
                           Value::String(text.substr(at + by.size()))},
                          true);
}

template <bool kPrefix>
Value RemoveAffix(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Bound bound = Bind("removeprefix", arguments, {"affix"}, 1);
  const std::string_view affix = TextArgument("removeprefix", *bound[0]);
  runtime.ChargeBytes(affix.size());
  std::string_view text = self.text();
  if (kPrefix && text.starts_with(affix)) text.remove_prefix(affix.size());
  if (!kPrefix && text.ends_with(affix)) text.remove_suffix(affix.size());
  return Runtime::Part(text);
}

// ljust, rjust and zfill.
template <bool kLeft, bool kZeros>
Value Fill(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Bound bound = Bind("ljust", arguments, {"width", "fillchar"}, 1);
  const int64_t wanted = IntegerArgument("ljust", bound[0], 0);
  const std::string_view by = kZeros ? "0" : bound[1] ? TextArgument("ljust", *bound[1]) : " ";
  if (CountCharacters(by) != 1) ThrowRuntime("ljust: what fills is not one character");
  const size_t size = Length(runtime, self);
  if (wanted <= static_cast<int64_t>(size)) return self;
  const size_t missing = static_cast<size_t>(wanted) - size;
  if (missing > runtime.limits().output_bytes / by.size()) ThrowLimit("output_bytes");
  std::string fill;
  for (size_t i = 0; i < missing; ++i) fill += by;
  std::string_view text = self.text();
  if (!kZeros) return runtime.Text(kLeft ? Concat(text, fill) : Concat(fill, text));
  const size_t sign = text.starts_with('-') || text.starts_with('+') ? 1 : 0;
  return runtime.Text(Concat(text.substr(0, sign), fill, text.substr(sign)));
}

// Whether all characters are so, and there is one.
template <bool (*kIs)(char32_t)>
Value AllAre(Runtime& runtime, const Value& self, const Arguments& arguments) {
  Bind("a method of str", arguments, {});
  const std::string_view text = self.text();
  runtime.ChargeBytes(text.size());
  for (size_t byte = 0; byte < text.size(); byte += CharacterLength(text[byte])) {
    if (!kIs(CharacterAt(text, byte))) return Value::Bool(false);
  }
  return Value::Bool(!text.empty());
}

bool IsDigit(char32_t c) {
  if (c >= 0x80) {
    Throw(ErrorKind::kUnsupported, "isdigit of characters beyond ASCII is not supported");
  }
  return c >= '0' && c <= '9';
}

template <bool kUpper>
Value HasCase(Runtime& runtime, const Value& self, const Arguments& arguments) {
  Bind("a method of str", arguments, {});
  const std::string_view text = self.text();
  runtime.ChargeBytes(text.size());
  bool any = false;
  for (size_t byte = 0; byte < text.size(); byte += CharacterLength(text[byte])) {
    const char32_t c = CharacterAt(text, byte);
    if (kUpper ? IsLower(c) : IsUpper(c)) return Value::Bool(false);
    any |= kUpper ? IsUpper(c) : IsLower(c);
  }
  return Value::Bool(any);
}

Value Format(Runtime& runtime, const Value& self, const Arguments& arguments) {
  return FormatBraces(runtime, self.text(), arguments);
}

const absl::flat_hash_map<std::string_view, Method>& Table() {
  static const auto* table = new absl::flat_hash_map<std::string_view, Method>{
      {"capitalize", MapText<Capitalize>},
      {"count", Count},
      {"endswith", HasAffix<false>},
      {"find", FindPart<false, false>},
      {"format", Format},
      {"index", FindPart<false, true>},
      {"isdigit", AllAre<IsDigit>},
      {"islower", HasCase<false>},
      {"isspace", AllAre<IsSpace>},
      {"isupper", HasCase<true>},
      {"join", Join},
      {"ljust", Fill<true, false>},
      {"lower", MapText<Lower>},
      {"lstrip", Strip<true, false>},
      {"partition", Partition<false>},
      {"removeprefix", RemoveAffix<true>},
      {"removesuffix", RemoveAffix<false>},
      {"replace", Replace},
      {"rfind", FindPart<true, false>},
      {"rindex", FindPart<true, true>},
      {"rjust", Fill<false, false>},
      {"rpartition", Partition<true>},
      {"rsplit", SplitText<true>},
      {"rstrip", Strip<false, true>},
      {"split", SplitText<false>},
      {"splitlines", Lines},
      {"startswith", HasAffix<true>},
      {"strip", Strip<true, true>},
      {"title", MapText<Title>},
      {"upper", MapText<Upper>},
      {"zfill", Fill<false, true>},
  };
  return *table;
}

// The methods of str that are not in the table: a template that asks for one is told so.
constexpr std::string_view kOthers[] = {"casefold",   "center",       "encode",    "expandtabs",
                                        "format_map", "isalnum",      "isalpha",   "isascii",
                                        "isdecimal",  "isidentifier", "isnumeric", "isprintable",
                                        "istitle",    "maketrans",    "swapcase",  "translate"};

}  // namespace

bool HasStringMethod(std::string_view name) {
  return Table().contains(name) ||
         std::find(std::begin(kOthers), std::end(kOthers), name) != std::end(kOthers);
}

Value CallStringMethod(Runtime& runtime, const Value& self, std::string_view name,
                       const Arguments& arguments) {
  const auto found = Table().find(name);
  if (found == Table().end()) {
    Throw(ErrorKind::kUnsupported, Concat("str.", name, " is not supported"));
  }
  return found->second(runtime, self, arguments);
}

}  // namespace sparsekv::chat
