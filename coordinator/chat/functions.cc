// The functions that every template finds: Jinja's and those that transformers adds.
#include <algorithm>

#include "base/concat.h"
#include "coordinator/chat/builtins.h"
#include "coordinator/chat/cursor.h"
#include "coordinator/chat/interpreter.h"
#include "coordinator/chat/operators.h"

namespace sparsekv::chat {

namespace {

constexpr std::string_view kFunctions[] = {"range",        "dict",   "namespace", "raise_exception",
                                           "strftime_now", "joiner", "cycler",    "lipsum"};

constexpr size_t kMaxRange = 100'000;  // of Jinja's sandbox

Value MakeRange(Runtime& runtime, const Arguments& arguments) {
  const Bound bound = Bind("range", arguments, {"start", "stop", "step"}, 1);
  int64_t start = 0, stop = IntegerArgument("range", bound[0], 0);
  if (bound[1]) {
    start = stop;
    stop = IntegerArgument("range", bound[1], 0);
  }
  const int64_t step = IntegerArgument("range", bound[2], 1);
  if (step == 0) ThrowRuntime("range: the step is 0");
  const uint64_t distance = step > 0 ? static_cast<uint64_t>(stop) - static_cast<uint64_t>(start)
                                     : static_cast<uint64_t>(start) - static_cast<uint64_t>(stop);
  const uint64_t stride = step > 0 ? static_cast<uint64_t>(step) : -static_cast<uint64_t>(step);
  const bool empty = step > 0 ? start >= stop : start <= stop;
  const uint64_t size = empty ? 0 : (distance - 1) / stride + 1;
  if (size > kMaxRange) ThrowLimit("items of a range (100000)");
  return Value::Of(runtime.arena().New<Range>(start, stop, step, static_cast<size_t>(size)));
}

void AppendPairs(Runtime& runtime, const Value& value, std::vector<DictEntry>* entries) {
  if (value.Is(Value::Kind::kDict)) {
    entries->insert(entries->end(), value.dict().begin(), value.dict().end());
    return;
  }
  for (const Value& pair : Items(runtime, value)) {
    const std::vector<Value> parts = Items(runtime, pair);
    if (parts.size() != 2) ThrowRuntime("dict: an item is no pair");
    entries->push_back({parts[0], parts[1]});
  }
}

std::vector<DictEntry> DictEntries(Runtime& runtime, const Arguments& arguments,
                                   std::string_view callee) {
  std::vector<DictEntry> entries;
  if (arguments.positional.size() > 1) {
    ThrowRuntime(Concat(callee, " takes one argument, and named ones"));
  }
  if (!arguments.positional.empty()) AppendPairs(runtime, arguments.positional[0], &entries);
  for (const auto& [name, value] : arguments.named) {
    entries.push_back({Value::String(name), value});
  }
  return entries;
}

Value MakeNamespace(Runtime& runtime, const Arguments& arguments) {
  Namespace* names = runtime.arena().New<Namespace>();
  for (const DictEntry& entry : DictEntries(runtime, arguments, "namespace")) {
    names->Set(runtime, TextArgument("namespace", entry.key), entry.value);
  }
  return Value::Of(names);
}

Value FormatNow(Interpreter& interpreter, const Arguments& arguments) {
  const Bound bound = Bind("strftime_now", arguments, {"format"}, 1);
  const std::string format(TextArgument("strftime_now", *bound[0]));
  if (format.size() > 1000) ThrowRuntime("strftime_now: the format is longer than 1000 bytes");
  // A character in front tells an empty result from one that does not fit.
  std::string marked = "." + format;
  std::erase(marked, '\0');
  std::string text(64 << 10, '\0');
  interpreter.runtime().ChargeBytes(text.size());
  const size_t length = strftime(text.data(), text.size(), marked.c_str(), &interpreter.now());
  if (length == 0) ThrowRuntime("strftime_now: the result is too long");
  return interpreter.runtime().Text(std::string_view(text).substr(1, length - 1));
}

}  // namespace

bool HasFunction(std::string_view name) {
  return std::find(std::begin(kFunctions), std::end(kFunctions), name) != std::end(kFunctions);
}

Value CallFunction(Interpreter& interpreter, std::string_view name, const Arguments& arguments) {
  Runtime& runtime = interpreter.runtime();
  if (name == "range") return MakeRange(runtime, arguments);
  if (name == "dict") return runtime.MakeDict(DictEntries(runtime, arguments, "dict"));
  if (name == "namespace") return MakeNamespace(runtime, arguments);
  if (name == "strftime_now") return FormatNow(interpreter, arguments);
  if (name == "raise_exception") {
    const Bound bound = Bind(name, arguments, {"message"}, 1);
    Throw(ErrorKind::kRaised, std::string(Str(runtime, *bound[0])));
  }
  Throw(ErrorKind::kUnsupported, Concat("the function '", name, "' is not supported"));
}

}  // namespace sparsekv::chat
