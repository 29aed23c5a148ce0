#pragma once

#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/chat/operators.h"
#include "coordinator/chat/value.h"

// A template as a tree. Nodes lie side by side in their Tree and point at each other, so that its
// end does not recurse.
namespace sparsekv::chat {

struct Expression {
  enum class Kind : uint8_t {
    kConstant,   // value
    kName,       // name
    kList,       // items
    kTuple,      // items
    kDict,       // items: key, value, key, value
    kAttribute,  // items[0].name
    kSubscript,  // items[0][items[1]]
    kSlice,      // items[0][items[1]:items[2]:items[3]]; null where nothing stands
    kCall,       // items[0](arguments)
    kFilter,     // items[0] | name(arguments); in a block's filter items[0] is null
    kTest,       // items[0] is name(arguments)
    kNot,
    kNegate,
    kPlus,
    kBinary,   // items[0] binary items[1]
    kCompare,  // items[0] compares[0] items[1] compares[1] items[2] ...
    kAnd,
    kOr,
    kConcat,     // items joined as text
    kCondition,  // items[0] if items[1] else items[2], which may be null
  };
  Kind kind;
  int line;
  std::string_view name = {};
  Value value = {};
  BinaryOp binary = BinaryOp::kAdd;
  std::vector<CompareOp> compares = {};
  std::vector<const Expression*> items = {};
  // Of calls, filters and tests.
  std::vector<const Expression*> arguments = {};
  std::vector<std::pair<std::string_view, const Expression*>> named = {};
  const Expression* spread = nullptr;        // *list
  const Expression* spread_named = nullptr;  // **dict
};

struct Statement;
using Block = std::vector<const Statement*>;

// What is assigned to: a name, an attribute of a namespace, or a tuple of targets.
struct Target {
  enum class Kind : uint8_t { kName, kAttribute, kTuple };
  Kind kind;
  int line;
  std::string_view name = {};
  std::string_view attribute = {};
  std::vector<const Target*> items = {};
};

struct Macro {
  std::string_view name;  // empty: the body of {% call %}
  std::vector<std::string_view> parameters = {};
  std::vector<const Expression*> defaults = {};  // of the last parameters
  bool uses_varargs = false, uses_kwargs = false, uses_caller = false;
  Block body = {};
};

struct Statement {
  enum class Kind : uint8_t {
    kText,         // text
    kPrint,        // values
    kFor,          // target, value, condition (null: all), body, otherwise
    kIf,           // values[i]: branches[i]; otherwise
    kSet,          // target, value
    kSetBlock,     // target, value = the filters or null, body
    kMacro,        // macro
    kCall,         // value = the call, macro = the body
    kFilterBlock,  // value = the filters, body
    kWith,         // targets[i] = values[i], body
    kScope,        // body: {% generation %}
    kBreak,
    kContinue,
  };
  Kind kind;
  int line;
  std::string_view text = {};
  const Target* target = nullptr;
  const Expression* value = nullptr;
  const Expression* condition = nullptr;
  const Macro* macro = nullptr;
  std::vector<const Target*> targets = {};
  std::vector<const Expression*> values = {};
  std::vector<Block> branches = {};
  Block body = {}, otherwise = {};
};

struct Tree {
  Block root;
  std::deque<Expression> expressions;
  std::deque<Statement> statements;
  std::deque<Target> targets;
  std::deque<Macro> macros;
  std::deque<std::string> texts;  // what the nodes' string_views point into
};

}  // namespace sparsekv::chat
