#include "coordinator/chat/format.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/ascii.h"
#include "base/concat.h"
#include "coordinator/chat/arguments.h"
#include "coordinator/chat/numbers.h"
#include "coordinator/chat/operators.h"
#include "coordinator/chat/text.h"

namespace sparsekv::chat {

using Kind = Value::Kind;

namespace {

constexpr int kMaxWidth = 1000;

// %[flags][width][.precision]type
struct Directive {
  bool left = false, zeros = false, plus = false, space = false;
  int width = 0, precision = -1;
  char type = 0;
};

int ReadNumber(std::string_view* text) {
  int number = 0;
  while (!text->empty() && absl::ascii_isdigit(static_cast<unsigned char>(text->front()))) {
    number = std::min(kMaxWidth, number * 10 + (text->front() - '0'));
    text->remove_prefix(1);
  }
  return number;
}

Directive ReadDirective(std::string_view* text) {
  Directive directive;
  for (; !text->empty(); text->remove_prefix(1)) {
    const char c = text->front();
    if (c == '-') {
      directive.left = true;
    } else if (c == '0') {
      directive.zeros = true;
    } else if (c == '+') {
      directive.plus = true;
    } else if (c == ' ') {
      directive.space = true;
    } else {
      break;
    }
  }
  directive.width = ReadNumber(text);
  if (!text->empty() && text->front() == '.') {
    text->remove_prefix(1);
    directive.precision = ReadNumber(text);
  }
  if (text->empty()) ThrowRuntime("a % format ends early");
  directive.type = text->front();
  text->remove_prefix(1);
  return directive;
}

std::string Number(const Directive& directive, const Value& value) {
  if (!value.IsNumber()) {
    if (value.Is(Kind::kUndefined)) ThrowUndefined(value);
    ThrowRuntime(
        Concat("%", std::string(1, directive.type), " takes a number, not ", TypeName(value)));
  }
  std::string digits;
  const bool negative = value.number() < 0;
  if (directive.type == 'f') {
    char buffer[400 + kMaxWidth];
    std::snprintf(buffer, sizeof buffer, "%.*f", directive.precision < 0 ? 6 : directive.precision,
                  negative ? -value.number() : value.number());
    digits = buffer;
  } else {
    const int64_t whole = value.IsInteger() ? value.integer() : Truncate(value.number());
    const uint64_t size = whole < 0 ? -static_cast<uint64_t>(whole) : static_cast<uint64_t>(whole);
    digits = directive.type == 'x' ? Concat(std::hex, size) : std::to_string(size);
    const size_t least = directive.precision < 0 ? 0 : static_cast<size_t>(directive.precision);
    if (digits.size() < least) digits.insert(0, least - digits.size(), '0');
  }
  std::string sign = negative ? "-" : directive.plus ? "+" : directive.space ? " " : "";
  const size_t width = static_cast<size_t>(directive.width);
  if (directive.zeros && !directive.left && sign.size() + digits.size() < width) {
    digits.insert(0, width - sign.size() - digits.size(), '0');
  }
  return sign + digits;
}

std::string Directed(Runtime& runtime, const Directive& directive, const Value& value) {
  std::string text;
  if (directive.type == 's' || directive.type == 'r') {
    if (directive.type == 's') {
      text = Str(runtime, value);
    } else {
      AppendRepr(runtime, value, &text);
    }
    if (directive.precision >= 0) {
      text.resize(ByteOffset(text, static_cast<size_t>(directive.precision)));
    }
  } else if (directive.type == 'd' || directive.type == 'i' || directive.type == 'x' ||
             directive.type == 'f') {
    text = Number(directive, value);
  } else {
    Throw(ErrorKind::kUnsupported,
          Concat("the format %", std::string(1, directive.type), " is not supported"));
  }
  const size_t width = static_cast<size_t>(directive.width), size = CountCharacters(text);
  if (size < width) text.insert(directive.left ? text.size() : 0, width - size, ' ');
  return text;
}

}  // namespace

Value FormatPercent(Runtime& runtime, std::string_view text, const std::vector<Value>& values) {
  std::string out;
  size_t used = 0;
  runtime.Charge(1 + text.size() / 8);
  while (!text.empty()) {
    const size_t percent = std::min(text.find('%'), text.size());
    out += text.substr(0, percent);
    text.remove_prefix(percent);
    if (text.empty()) break;
    text.remove_prefix(1);
    const Directive directive = ReadDirective(&text);
    if (directive.type == '%') {
      out += '%';
    } else {
      if (used == values.size()) ThrowRuntime("a % format has too few values");
      out += Directed(runtime, directive, values[used++]);
    }
    runtime.CheckText(out.size());
  }
  // A dictionary may be given to a text that has no place for it, as in Python.
  const bool mapping =
      values.size() == 1 && (values[0].Is(Kind::kDict) || values[0].Is(Kind::kList));
  if (used < values.size() && !mapping) ThrowRuntime("a % format has too many values");
  return runtime.Text(out);
}

namespace {

Value Field(std::string_view name, const Arguments& arguments, size_t* next) {
  const std::optional<int64_t> number =
      name.empty() ? static_cast<int64_t>((*next)++) : ParseInteger(name);
  if (!number) {
    if (name.find_first_of(".[") != std::string_view::npos) {
      Throw(ErrorKind::kUnsupported, "{name.attribute} and {name[key]} are not supported");
    }
    for (const auto& [key, value] : arguments.named) {
      if (key == name) return value;
    }
    ThrowRuntime(Concat("format: no argument '", name, "'"));
  }
  if (*number < 0 || static_cast<size_t>(*number) >= arguments.positional.size()) {
    ThrowRuntime(Concat("format: no argument ", *number));
  }
  return arguments.positional[static_cast<size_t>(*number)];
}

}  // namespace

Value FormatBraces(Runtime& runtime, std::string_view text, const Arguments& arguments) {
  std::string out;
  size_t next = 0;
  runtime.Charge(1 + text.size() / 8);
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '{' && text[i] != '}') {
      out += text[i];
      continue;
    }
    if (i + 1 < text.size() && text[i + 1] == text[i]) {
      out += text[i++];
      continue;
    }
    const size_t close = text[i] == '{' ? text.find('}', i) : std::string_view::npos;
    if (close == std::string_view::npos) ThrowRuntime("format: a single brace");
    std::string_view field = text.substr(i + 1, close - i - 1);
    const bool repr = field.ends_with("!r");
    if (repr || field.ends_with("!s")) field.remove_suffix(2);
    if (field.find_first_of(":!{") != std::string_view::npos) {
      Throw(ErrorKind::kUnsupported, Concat("format: {", field, "} is not supported"));
    }
    runtime.ChargeSearch(arguments.named.size(), field);
    const Value value = Field(field, arguments, &next);
    if (repr) {
      AppendRepr(runtime, value, &out);
    } else {
      out += Str(runtime, value);
    }
    runtime.CheckText(out.size());
    i = close;
  }
  return runtime.Text(out);
}

}  // namespace sparsekv::chat
