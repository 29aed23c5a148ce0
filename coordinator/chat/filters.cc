// Filters over single values. Those over sequences are in sequence_filters.cc.
#include <cmath>

#include "absl/container/flat_hash_map.h"
#include "base/concat.h"
#include "coordinator/chat/builtins.h"
#include "coordinator/chat/filter_table.h"
#include "coordinator/chat/format.h"
#include "coordinator/chat/html.h"
#include "coordinator/chat/interpreter.h"
#include "coordinator/chat/json.h"
#include "coordinator/chat/numbers.h"
#include "coordinator/chat/operators.h"
#include "coordinator/chat/text.h"

namespace sparsekv::chat {

using Kind = Value::Kind;

namespace {

// A text as Jinja's soft_str gives it, and whether it is safe.
struct SoftText {
  std::string_view text;
  bool safe;
};
SoftText Soft(Runtime& runtime, const Value& value) {
  return {Str(runtime, value), value.Is(Kind::kString) && value.safe()};
}

template <std::string (*kMap)(std::string_view)>
Value MapText(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  Runtime& runtime = interpreter.runtime();
  Bind("a text filter", arguments, {});
  const SoftText soft = Soft(runtime, input);
  runtime.ChargeBytes(soft.text.size());
  return runtime.Text(kMap(soft.text), soft.safe);
}

Value String(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  Bind("string", arguments, {});
  const SoftText soft = Soft(interpreter.runtime(), input);
  return Runtime::Part(soft.text, soft.safe);
}

Value Trim(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  const Bound bound = Bind("trim", arguments, {"chars"});
  const SoftText soft = Soft(interpreter.runtime(), input);
  std::optional<std::string_view> set;
  if (bound[0] && !bound[0]->Is(Kind::kNone)) set = TextArgument("trim", *bound[0]);
  interpreter.runtime().Charge(1 + soft.text.size() * (set ? 1 + set->size() / 8 : 1) / 8);
  return Runtime::Part(StripRight(StripLeft(soft.text, set), set), soft.safe);
}

Value Replace(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  Runtime& runtime = interpreter.runtime();
  const Bound bound = Bind("replace", arguments, {"old", "new", "count"}, 2);
  Arguments plain;
  plain.positional = {Runtime::Part(Str(runtime, *bound[0])),
                      Runtime::Part(Str(runtime, *bound[1]))};
  if (bound[2] && !bound[2]->Is(Kind::kNone)) plain.positional.push_back(*bound[2]);
  return CallMethod(interpreter, Runtime::Part(Str(runtime, input)), "replace", plain);
}

Value Indent(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  constexpr int64_t kMost = 1000;
  Runtime& runtime = interpreter.runtime();
  const Bound bound = Bind("indent", arguments, {"width", "first", "blank"});
  if (input.Is(Kind::kUndefined)) ThrowUndefined(input);
  const std::string text = Concat(TextArgument("indent", input), "\n");
  std::string indent;
  if (bound[0] && bound[0]->Is(Kind::kString)) {
    indent = bound[0]->text();
  } else {
    const int64_t width = IntegerArgument("indent", bound[0], 4);
    indent.assign(static_cast<size_t>(std::clamp<int64_t>(width, 0, kMost + 1)), ' ');
  }
  if (indent.size() > kMost) ThrowLimit("width of indent (1000)");
  const bool first = TruthArgument(bound[1], false), blank = TruthArgument(bound[2], false);
  std::string out = first ? indent : "";
  bool begun = false;
  const auto lines = SplitLines(text, static_cast<int64_t>(runtime.limits().items));
  runtime.CheckItems(lines.size());
  for (const std::string_view line : lines) {
    if (begun) {
      out += '\n';
      if (blank || !line.empty()) out += indent;
    }
    begun = true;
    out += line;
    runtime.CheckText(0);
    if (out.size() > runtime.limits().output_bytes) ThrowLimit("output_bytes");
  }
  return runtime.Text(out, input.safe());
}

Value Escape(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  Runtime& runtime = interpreter.runtime();
  Bind("escape", arguments, {});
  const SoftText soft = Soft(runtime, input);
  if (soft.safe) return input;
  runtime.ChargeBytes(soft.text.size());
  std::string escaped;
  AppendHtmlEscaped(soft.text, &escaped);
  return runtime.Text(escaped, true);
}

Value Safe(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  Bind("safe", arguments, {});
  return Runtime::Part(Str(interpreter.runtime(), input), true);
}

Value Format(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  Runtime& runtime = interpreter.runtime();
  if (!arguments.named.empty()) {
    Throw(ErrorKind::kUnsupported, "format with names is not supported");
  }
  return FormatPercent(runtime, Str(runtime, input), arguments.positional);
}

Value Default(Interpreter&, const Value& input, const Arguments& arguments) {
  const Bound bound = Bind("default", arguments, {"default_value", "boolean"});
  const bool missing =
      input.Is(Kind::kUndefined) || (TruthArgument(bound[1], false) && !Truth(input));
  if (!missing) return input;
  return bound[0] ? *bound[0] : Value::String("");
}

Value Integer(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  const Bound bound = Bind("int", arguments, {"default", "base"});
  if (IntegerArgument("int", bound[1], 10) != 10) {
    Throw(ErrorKind::kUnsupported, "int with a base is not supported");
  }
  const Value fallback = bound[0] ? *bound[0] : Value::Int(0);
  if (input.Is(Kind::kUndefined)) ThrowUndefined(input);
  if (input.IsInteger()) return Value::Int(input.integer());
  if (input.Is(Kind::kFloat)) {
    return std::isfinite(input.floating()) ? Value::Int(Truncate(input.floating())) : fallback;
  }
  if (!input.Is(Kind::kString)) return fallback;
  interpreter.runtime().Charge(1 + input.text().size() / 8);
  if (const auto whole = ParseInteger(input.text())) return Value::Int(*whole);
  const auto real = ParseFloat(input.text());
  return real && std::isfinite(*real) ? Value::Int(Truncate(*real)) : fallback;
}

Value Float(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  const Bound bound = Bind("float", arguments, {"default"});
  if (input.Is(Kind::kUndefined)) ThrowUndefined(input);
  if (input.IsNumber()) return Value::Float(input.number());
  if (input.Is(Kind::kString)) {
    interpreter.runtime().Charge(1 + input.text().size() / 8);
    if (const auto value = ParseFloat(input.text())) return Value::Float(*value);
  }
  return bound[0] ? *bound[0] : Value::Float(0);
}

Value RoundNumber(Interpreter&, const Value& input, const Arguments& arguments) {
  const Bound bound = Bind("round", arguments, {"precision", "method"});
  const int64_t digits = IntegerArgument("round", bound[0], 0);
  const std::string_view method = bound[1] ? TextArgument("round", *bound[1]) : "common";
  if (input.Is(Kind::kUndefined)) ThrowUndefined(input);
  if (!input.IsNumber()) ThrowRuntime(Concat("round takes a number, not ", TypeName(input)));
  if (method == "common") {
    if (!input.IsInteger()) return Value::Float(Round(input.number(), digits));
    if (digits < 0) Throw(ErrorKind::kUnsupported, "round of an integer to tens is not supported");
    return Value::Int(input.integer());
  }
  if (method != "ceil" && method != "floor") ThrowRuntime("round: no such method");
  const double unit = std::pow(10.0, static_cast<double>(digits)), scaled = input.number() * unit;
  return Value::Float((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / unit);
}

Value Absolute(Interpreter&, const Value& input, const Arguments& arguments) {
  Bind("abs", arguments, {});
  if (!input.IsNumber()) return Negate(input);  // which says what is wrong
  if (input.Is(Kind::kFloat)) return Value::Float(std::fabs(input.floating()));
  return input.integer() < 0 ? Negate(input) : Value::Int(input.integer());
}

Value ToJson(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  constexpr int64_t kMost = 100;
  const Bound bound =
      Bind("tojson", arguments, {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonFormat format{.ascii = TruthArgument(bound[0], false),
                    .sort_keys = TruthArgument(bound[3], false)};
  if (bound[1] && !bound[1]->Is(Kind::kNone)) {
    format.lines = true;
    format.item_separator = ",";
    if (bound[1]->Is(Kind::kString)) {
      format.indent = bound[1]->text();
    } else {
      const int64_t width = IntegerArgument("tojson", bound[1], 0);
      format.indent.assign(static_cast<size_t>(std::clamp<int64_t>(width, 0, kMost + 1)), ' ');
    }
    if (format.indent.size() > kMost) ThrowLimit("indent of tojson (100)");
  }
  if (bound[2] && !bound[2]->Is(Kind::kNone)) {
    if (!bound[2]->IsSequence() || bound[2]->list().size != 2) {
      ThrowRuntime("tojson: separators are no pair");
    }
    format.item_separator = TextArgument("tojson", bound[2]->list().items[0]);
    format.key_separator = TextArgument("tojson", bound[2]->list().items[1]);
    if (format.item_separator.size() + format.key_separator.size() > kMost) {
      ThrowLimit("separators of tojson (100)");
    }
  }
  return interpreter.runtime().Text(DumpJson(interpreter.runtime(), input, format));
}

Value GetAttribute(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  const Bound bound = Bind("attr", arguments, {"name"}, 1);
  const std::string_view name = TextArgument("attr", *bound[0]);
  if (input.Is(Kind::kDict) && !HasMethod(input, name)) {  // items are no attributes
    return interpreter.runtime().Undefined(UndefinedInfo::How::kMember, input, *bound[0]);
  }
  return interpreter.Attribute(input, name);
}

const absl::flat_hash_map<std::string_view, Filter>& Table() {
  static const auto* table = [] {
    auto* made = new absl::flat_hash_map<std::string_view, Filter>{
        {"abs", Absolute},
        {"attr", GetAttribute},
        {"capitalize", MapText<Capitalize>},
        {"d", Default},
        {"default", Default},
        {"e", Escape},
        {"escape", Escape},
        {"float", Float},
        {"format", Format},
        {"indent", Indent},
        {"int", Integer},
        {"lower", MapText<Lower>},
        {"replace", Replace},
        {"round", RoundNumber},
        {"safe", Safe},
        {"string", String},
        {"title", MapText<TitleWords>},
        {"tojson", ToJson},
        {"trim", Trim},
        {"upper", MapText<Upper>},
    };
    for (const auto& [name, filter] : SequenceFilters()) made->emplace(name, filter);
    return made;
  }();
  return *table;
}

}  // namespace

Value ApplyFilter(Interpreter& interpreter, std::string_view name, const Value& input,
                  const Arguments& arguments) {
  const auto found = Table().find(name);
  if (found == Table().end()) {
    Throw(ErrorKind::kUnsupported, Concat("the filter '", name, "' is not supported"));
  }
  return found->second(interpreter, input, arguments);
}

bool HasFilter(std::string_view name) { return Table().contains(name); }

}  // namespace sparsekv::chat
