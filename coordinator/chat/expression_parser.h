#pragma once

#include <string_view>
#include <utility>
#include <vector>

#include "coordinator/chat/ast.h"
#include "coordinator/chat/limits.h"
#include "coordinator/chat/token_stream.h"

namespace sparsekv::chat {

// Expressions, with Jinja's precedence: one method a level. Throws kSyntax, kUnsupported and
// kLimit.
class ExpressionParser {
 public:
  ExpressionParser(TokenStream* stream, Tree* tree, const TemplateLimits& limits)
      : stream_(*stream), tree_(*tree), limits_(limits) {}

  using Node = const Expression*;

  // One expression, or a tuple of them without brackets. `end` is a name that ends the tuple.
  Node ParseTuple(bool with_condition = true, std::string_view end = {},
                  bool in_parentheses = false);
  Node ParseExpression(bool with_condition = true);
  // `| name(...) | name(...)` over `input`, which may be null. Null when there is no filter.
  Node ParseFilters(Node input, bool begun = false);

  // What the expressions parsed since the last ResetUse named, as macros must know.
  struct Use {
    bool varargs = false, kwargs = false, caller = false;
  };
  Use TakeUse() { return std::exchange(use_, {}); }
  void AddUse(Use use) {
    use_ = {use_.varargs || use.varargs, use_.kwargs || use.kwargs, use_.caller || use.caller};
  }

  // One level of brackets or blocks; throws kLimit past the limit.
  class Level {
   public:
    explicit Level(ExpressionParser& parser) : parser_(parser) {
      if (++parser_.level_ > parser_.limits_.parse_depth) {
        parser_.stream_.Fail("parse_depth", ErrorKind::kLimit);
      }
    }
    ~Level() { --parser_.level_; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;

   private:
    ExpressionParser& parser_;
  };

  std::string_view Keep(std::string text);  // for as long as the tree

 private:
  Node ParseCondition();
  Node ParseOr();
  Node ParseAnd();
  Node ParseNot();
  Node ParseCompare();
  Node ParseSum();
  Node ParseConcat();
  Node ParseProduct();
  Node ParsePower();
  Node ParseUnary(bool with_filters = true);
  Node ParsePrimary();
  Node ParseName();
  Node ParseList();
  Node ParseDict();
  Node ParsePostfix(Node node);
  Node ParseSubscript(Node node);
  Node ParseCall(Node node);
  Node ParseTest(Node node);
  void ParseArguments(Expression* call);
  void ParseArgument(Expression* call);

  Expression* Make(Expression::Kind kind, int line, std::vector<Node> items = {});
  Node MakeBinary(BinaryOp op, int line, Node left, Node right);
  bool AtTupleEnd(std::string_view end) const;

  TokenStream& stream_;
  Tree& tree_;
  const TemplateLimits limits_;
  uint32_t level_ = 0;
  Use use_;
};

}  // namespace sparsekv::chat
