// Statements. Expressions are in expression_parser.cc.
#include "coordinator/chat/parser.h"

#include <algorithm>
#include <initializer_list>
#include <string>
#include <utility>

#include "coordinator/chat/expression_parser.h"
#include "coordinator/chat/lexer.h"
#include "coordinator/chat/token_stream.h"

namespace sparsekv::chat {

namespace {

using Type = Token::Type;
using Kind = Statement::Kind;

class Parser {
 public:
  Parser(std::string_view source, const TemplateLimits& limits)
      : tree_(std::make_unique<Tree>()),
        stream_(Tokenize(source)),
        expressions_(&stream_, tree_.get(), limits) {}

  std::unique_ptr<const Tree> Run() {
    tree_->root = ParseBlock({});
    return std::move(tree_);
  }

 private:
  using Ends = std::initializer_list<std::string_view>;

  Statement* Make(Kind kind, int line) {
    tree_->statements.push_back({.kind = kind, .line = line});
    return &tree_->statements.back();
  }

  // Up to a tag that begins with one of `ends`, whose name is then the current token; up to the end
  // of the template when there are none.
  Block ParseBlock(Ends ends);
  // The end of a tag, and the block after it.
  Block ParseBody(Ends ends) {
    stream_.SkipOperator(":");
    stream_.Expect(Type::kTagEnd, "the end of the tag");
    return ParseBlock(ends);
  }
  Block ParseBodyTo(std::string_view end) {
    Block body = ParseBody({end});
    stream_.Next();
    return body;
  }

  const Statement* ParseStatement();
  const Statement* ParseFor(Statement* node);
  const Statement* ParseIf(Statement* node);
  const Statement* ParseSet(Statement* node);
  const Statement* ParseMacro(Statement* node);
  const Statement* ParseCall(Statement* node);
  const Statement* ParseWith(Statement* node);
  void ParseSignature(Macro* macro);
  void ParseMacroBody(Macro* macro, std::string_view end);

  const Target* ParseTarget(bool with_attributes, std::string_view end);
  const Target* ParseOneTarget(bool with_attributes);

  std::unique_ptr<Tree> tree_;
  TokenStream stream_;
  ExpressionParser expressions_;
  int loops_ = 0;  // that the current block is in
};

Block Parser::ParseBlock(Ends ends) {
  const ExpressionParser::Level level(expressions_);
  const int begin = stream_.line();
  Block block;
  while (!stream_.Is(Type::kEnd)) {
    const int line = stream_.line();
    if (stream_.Is(Type::kText)) {
      Statement* text = Make(Kind::kText, line);
      text->text = expressions_.Keep(stream_.Next().text);
      block.push_back(text);
    } else if (stream_.Is(Type::kPrintBegin)) {
      stream_.Next();
      Statement* print = Make(Kind::kPrint, line);
      print->values = {expressions_.ParseTuple()};
      stream_.Expect(Type::kPrintEnd, "'}}'");
      block.push_back(print);
    } else {
      stream_.Expect(Type::kTagBegin, "a tag");
      const bool named = stream_.Is(Type::kName);
      if (named && std::find(ends.begin(), ends.end(), stream_.current().text) != ends.end()) {
        return block;
      }
      block.push_back(ParseStatement());
      stream_.Expect(Type::kTagEnd, "the end of the tag");
    }
  }
  if (ends.size() > 0) {
    stream_.Fail(Concat("the block of line ", begin, " has no ", *(ends.end() - 1)));
  }
  return block;
}

const Statement* Parser::ParseStatement() {
  const int line = stream_.line();
  const std::string name = stream_.Expect(Type::kName, "the name of a tag").text;
  if (name == "for") return ParseFor(Make(Kind::kFor, line));
  if (name == "if") return ParseIf(Make(Kind::kIf, line));
  if (name == "set") return ParseSet(Make(Kind::kSet, line));
  if (name == "macro") return ParseMacro(Make(Kind::kMacro, line));
  if (name == "call") return ParseCall(Make(Kind::kCall, line));
  if (name == "with") return ParseWith(Make(Kind::kWith, line));
  if (name == "filter") {
    Statement* node = Make(Kind::kFilterBlock, line);
    node->value = expressions_.ParseFilters(nullptr, true);
    node->body = ParseBodyTo("endfilter");
    return node;
  }
  if (name == "generation") {  // marks what the model wrote, for training
    Statement* node = Make(Kind::kScope, line);
    const int loops = std::exchange(loops_, 0);  // Jinja makes a function of it
    node->body = ParseBodyTo("endgeneration");
    loops_ = loops;
    return node;
  }
  if (name == "print") {
    Statement* node = Make(Kind::kPrint, line);
    do {
      node->values.push_back(expressions_.ParseExpression());
    } while (stream_.SkipOperator(","));
    return node;
  }
  if (name == "break" || name == "continue") {
    if (loops_ == 0) stream_.Fail(Concat("'", name, "' is in no loop"));
    return Make(name == "break" ? Kind::kBreak : Kind::kContinue, line);
  }
  for (const std::string_view other :
       {"block", "extends", "include", "import", "from", "autoescape"}) {
    if (name == other) {
      stream_.Fail(Concat("{% ", name, " %} is not supported"), ErrorKind::kUnsupported);
    }
  }
  stream_.Fail(Concat("unknown or misplaced tag '", name, "'"));
}

const Statement* Parser::ParseFor(Statement* node) {
  node->target = ParseTarget(false, "in");
  if (!stream_.SkipName("in")) stream_.Fail(Concat("expected 'in', got ", stream_.Shown()));
  node->value = expressions_.ParseTuple(false, "recursive");
  if (stream_.SkipName("if")) node->condition = expressions_.ParseExpression();
  if (stream_.IsName("recursive")) {
    stream_.Fail("recursive loops are not supported", ErrorKind::kUnsupported);
  }
  ++loops_;
  node->body = ParseBody({"else", "endfor"});
  --loops_;
  if (stream_.Next().text == "else") node->otherwise = ParseBodyTo("endfor");
  return node;
}

const Statement* Parser::ParseIf(Statement* node) {
  while (true) {
    node->values.push_back(expressions_.ParseTuple(false));
    node->branches.push_back(ParseBody({"elif", "else", "endif"}));
    if (stream_.SkipName("elif")) continue;
    if (stream_.SkipName("else")) {
      node->otherwise = ParseBodyTo("endif");
    } else {
      stream_.Next();
    }
    return node;
  }
}

const Statement* Parser::ParseSet(Statement* node) {
  node->target = ParseTarget(true, {});
  if (stream_.SkipOperator("=")) {
    node->value = expressions_.ParseTuple();
    return node;
  }
  node->kind = Kind::kSetBlock;
  node->value = expressions_.ParseFilters(nullptr);
  node->body = ParseBodyTo("endset");
  return node;
}

void Parser::ParseSignature(Macro* macro) {
  stream_.ExpectOperator("(");
  while (!stream_.IsOperator(")")) {
    macro->parameters.push_back(
        expressions_.Keep(stream_.Expect(Type::kName, "the name of a parameter").text));
    if (stream_.SkipOperator("=")) {
      macro->defaults.push_back(expressions_.ParseExpression());
    } else if (!macro->defaults.empty()) {
      stream_.Fail("a parameter without a default follows one that has one");
    }
    if (!stream_.SkipOperator(",")) break;
  }
  stream_.ExpectOperator(")");
}

// What is named inside counts for the macros around it too: Jinja looks no closer.
void Parser::ParseMacroBody(Macro* macro, std::string_view end) {
  const ExpressionParser::Use around = expressions_.TakeUse();
  const int loops = std::exchange(loops_, 0);
  macro->body = ParseBodyTo(end);
  loops_ = loops;
  const ExpressionParser::Use use = expressions_.TakeUse();
  macro->uses_varargs = use.varargs;
  macro->uses_kwargs = use.kwargs;
  macro->uses_caller = use.caller;
  expressions_.AddUse(around);
}

const Statement* Parser::ParseMacro(Statement* node) {
  tree_->macros.push_back({});
  Macro* macro = &tree_->macros.back();
  macro->name = expressions_.Keep(stream_.Expect(Type::kName, "the name of a macro").text);
  node->macro = macro;
  ParseSignature(macro);
  ParseMacroBody(macro, "endmacro");
  return node;
}

const Statement* Parser::ParseCall(Statement* node) {
  tree_->macros.push_back({});
  Macro* macro = &tree_->macros.back();
  node->macro = macro;
  if (stream_.IsOperator("(")) ParseSignature(macro);
  node->value = expressions_.ParseExpression();
  if (node->value->kind != Expression::Kind::kCall) {
    stream_.Fail("a call block needs a call");
  }
  ParseMacroBody(macro, "endcall");
  return node;
}

const Statement* Parser::ParseWith(Statement* node) {
  while (!stream_.Is(Type::kTagEnd)) {
    if (!node->targets.empty()) stream_.ExpectOperator(",");
    node->targets.push_back(ParseOneTarget(false));
    stream_.ExpectOperator("=");
    node->values.push_back(expressions_.ParseExpression());
  }
  node->body = ParseBodyTo("endwith");
  return node;
}

// Targets up to `end` or an operator that cannot follow one.
const Target* Parser::ParseTarget(bool with_attributes, std::string_view end) {
  const int line = stream_.line();
  std::vector<const Target*> items = {ParseOneTarget(with_attributes)};
  bool is_tuple = false;
  while (stream_.SkipOperator(",")) {
    is_tuple = true;
    const bool more = stream_.IsOperator("(") ||
                      (stream_.Is(Type::kName) && (end.empty() || !stream_.IsName(end)));
    if (!more) break;
    items.push_back(ParseOneTarget(with_attributes));
  }
  if (!is_tuple) return items[0];
  tree_->targets.push_back({.kind = Target::Kind::kTuple, .line = line, .items = std::move(items)});
  return &tree_->targets.back();
}

const Target* Parser::ParseOneTarget(bool with_attributes) {
  const ExpressionParser::Level level(expressions_);
  if (stream_.SkipOperator("(")) {
    const Target* target = ParseTarget(with_attributes, {});
    stream_.ExpectOperator(")");
    return target;
  }
  const int line = stream_.line();
  Target target{.kind = Target::Kind::kName, .line = line};
  target.name = expressions_.Keep(stream_.Expect(Type::kName, "a name to assign to").text);
  for (const std::string_view constant : {"true", "false", "none", "True", "False", "None"}) {
    if (target.name == constant) stream_.Fail(Concat("cannot assign to ", constant));
  }
  if (with_attributes && stream_.SkipOperator(".")) {
    target.kind = Target::Kind::kAttribute;
    target.attribute = expressions_.Keep(stream_.Expect(Type::kName, "a name after '.'").text);
  }
  tree_->targets.push_back(std::move(target));
  return &tree_->targets.back();
}

}  // namespace

std::unique_ptr<const Tree> ParseTemplate(std::string_view source, const TemplateLimits& limits) {
  if (source.size() > limits.source_bytes) {
    throw TemplateError{ErrorKind::kLimit, "source_bytes", 0};
  }
  return Parser(source, limits).Run();
}

}  // namespace sparsekv::chat
