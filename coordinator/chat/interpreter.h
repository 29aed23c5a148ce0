#pragma once

#include <ctime>
#include <string>
#include <string_view>

#include "coordinator/chat/arguments.h"
#include "coordinator/chat/ast.h"
#include "coordinator/chat/callable.h"
#include "coordinator/chat/runtime.h"
#include "coordinator/chat/scope.h"

namespace sparsekv::chat {

// Renders one tree once. Throws TemplateError, with the line.
class Interpreter {
 public:
  // `now` is what strftime_now shows. The tree and the runtime outlive it.
  Interpreter(const Tree& tree, Runtime* runtime, std::tm now)
      : tree_(tree), runtime_(*runtime), now_(now) {}

  void SetGlobal(std::string_view name, const Value& value) { globals_.Set(runtime_, name, value); }
  std::string Render();

  // For filters, tests and functions.
  Runtime& runtime() { return runtime_; }
  const std::tm& now() const { return now_; }
  Value Call(const Value& callee, const Arguments& arguments);
  Value Attribute(const Value& value, std::string_view name);  // value.name
  Value Subscript(const Value& value, const Value& key);       // value[key]
  Value Evaluate(const Expression& node);
  // Assigns an item to a loop's target, and says whether its condition holds there.
  bool Accepts(const Statement& loop, Scope* outside, const Value& item);

 private:
  enum class Flow : uint8_t { kNext, kBreak, kContinue };
  class Enter;  // a scope while it lives

  Flow Run(const Block& block);
  Flow Run(const Statement& node);
  Flow RunNode(const Statement& node);
  Flow RunFor(const Statement& node);
  Flow RunIf(const Statement& node);
  void RunPrint(const Statement& node);
  void RunCall(const Statement& node);
  void RunWith(const Statement& node);
  void Assign(const Target& target, const Value& value);
  void AssignTuple(const Target& target, const Value& value);
  void Write(std::string_view text);
  Value Capture(const Block& block);  // what it writes

  Value EvaluateNode(const Expression& node);
  Value EvaluateName(const Expression& node);
  Value EvaluateItems(const Expression& node);
  Value EvaluateDict(const Expression& node);
  Value EvaluateSlice(const Expression& node);
  Value EvaluateCompare(const Expression& node);
  Value EvaluateConcat(const Expression& node);
  Value EvaluateCondition(const Expression& node);
  Value EvaluateFilter(const Expression& node);
  Value EvaluateCall(const Expression& node);
  // Filters whose innermost input is null get `input` there.
  Value ApplyFilters(const Expression& filters, const Value& input);
  Arguments EvaluateArguments(const Expression& node);

  Value CallMacro(const Callable& callable, const Arguments& arguments);
  void BindParameters(const Macro& macro, const Arguments& arguments, Scope* scope);
  Value MakeMacro(const Macro& macro);

  const Tree& tree_;
  Runtime& runtime_;
  const std::tm now_;
  ScopePool pool_;
  Scope globals_;
  Scope* scope_ = nullptr;
  std::string* out_ = nullptr;
  size_t written_ = 0;  // bytes of all texts that are being written, one inside the other
  const Value* filter_input_ = nullptr;
};

}  // namespace sparsekv::chat
