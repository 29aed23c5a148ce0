#include "coordinator/chat/template.h"

#include <utility>

#include "base/concat.h"
#include "coordinator/chat/interpreter.h"
#include "coordinator/chat/json.h"
#include "coordinator/chat/parser.h"
#include "coordinator/tokenizer/utf8.h"

namespace sparsekv::chat {

namespace {

// One line, whatever a template wrote into its message.
std::string OneLine(std::string_view text) {
  constexpr size_t kMost = 500;
  std::string line(text.substr(0, kMost));
  line.resize(tokenizer::ValidUtf8Prefix(line));
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';
  }
  return line;
}

absl::Status ToStatus(const TemplateError& error) {
  const std::string place = error.line > 0 ? Concat("line ", error.line, ": ") : "";
  const char* limit = error.kind == ErrorKind::kLimit ? "the template is over its limit: " : "";
  return absl::InvalidArgumentError(Concat(place, limit, OneLine(error.message)));
}

// Names that the values point at live as long as the rendering.
void SetGlobals(const RenderInput& input, Runtime* runtime, Interpreter* interpreter) {
  constexpr size_t kMostVariables = 200;
  const Value messages = ParseJson(*runtime, input.messages, "messages");
  if (!messages.Is(Value::Kind::kList)) ThrowRuntime("messages: is no list");
  const Value tools =
      input.tools.empty() ? Value::None() : ParseJson(*runtime, input.tools, "tools");
  if (!tools.Is(Value::Kind::kList) && !tools.Is(Value::Kind::kNone)) {
    ThrowRuntime("tools: is no list");
  }
  interpreter->SetGlobal("messages", messages);
  interpreter->SetGlobal("tools", tools);
  interpreter->SetGlobal("documents", Value::None());
  interpreter->SetGlobal("add_generation_prompt", Value::Bool(input.add_generation_prompt));
  for (const auto& [name, token] : input.special_tokens) {
    interpreter->SetGlobal(name, Value::String(token));
  }
  if (input.variables.empty()) return;
  const Value variables = ParseJson(*runtime, input.variables, "variables");
  if (!variables.Is(Value::Kind::kDict)) ThrowRuntime("variables: is no object");
  if (variables.dict().size > kMostVariables) ThrowLimit("200 variables");
  for (const DictEntry& entry : variables.dict()) {
    interpreter->SetGlobal(entry.key.text(), entry.value);
  }
}

}  // namespace

Template::Template(std::unique_ptr<const Tree> tree, const TemplateLimits& limits)
    : tree_(std::move(tree)), limits_(limits) {}
Template::~Template() = default;

absl::StatusOr<std::unique_ptr<const Template>> Template::Parse(std::string_view source,
                                                                const TemplateLimits& limits) {
  const size_t valid = tokenizer::ValidUtf8Prefix(source);
  if (valid < source.size()) {
    return absl::InvalidArgumentError(Concat("byte ", valid, " is not UTF-8"));
  }
  try {
    return std::unique_ptr<const Template>(new Template(ParseTemplate(source, limits), limits));
  } catch (const TemplateError& error) {
    return ToStatus(error);
  }
}

absl::StatusOr<std::string> Template::Render(const RenderInput& input, ErrorKind* kind) const {
  try {
    Runtime runtime(limits_);
    Interpreter interpreter(*tree_, &runtime, input.now);
    SetGlobals(input, &runtime, &interpreter);
    return interpreter.Render();
  } catch (const TemplateError& error) {
    if (kind != nullptr) *kind = error.kind;
    return ToStatus(error);
  }
}

std::tm LocalTime() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  return local;
}

}  // namespace sparsekv::chat
