#include "coordinator/chat/expression_parser.h"

#include <optional>

namespace sparsekv::chat {

using Kind = Expression::Kind;
using Type = Token::Type;

Expression* ExpressionParser::Make(Kind kind, int line, std::vector<Node> items) {
  tree_.expressions.push_back({.kind = kind, .line = line, .items = std::move(items)});
  return &tree_.expressions.back();
}

ExpressionParser::Node ExpressionParser::MakeBinary(BinaryOp op, int line, Node left, Node right) {
  Expression* node = Make(Kind::kBinary, line, {left, right});
  node->binary = op;
  return node;
}

std::string_view ExpressionParser::Keep(std::string text) {
  tree_.texts.push_back(std::move(text));
  return tree_.texts.back();
}

bool ExpressionParser::AtTupleEnd(std::string_view end) const {
  return stream_.Is(Type::kPrintEnd) || stream_.Is(Type::kTagEnd) || stream_.IsOperator(")") ||
         (!end.empty() && stream_.IsName(end));
}

ExpressionParser::Node ExpressionParser::ParseTuple(bool with_condition, std::string_view end,
                                                    bool in_parentheses) {
  const int line = stream_.line();
  std::vector<Node> items;
  bool is_tuple = false;
  while (!AtTupleEnd(end)) {
    items.push_back(ParseExpression(with_condition));
    if (!stream_.SkipOperator(",")) break;
    is_tuple = true;
  }
  if (!is_tuple && !items.empty()) return items[0];
  if (!is_tuple && !in_parentheses) {
    stream_.Fail(Concat("expected an expression, got ", stream_.Shown()));
  }
  return Make(Kind::kTuple, line, std::move(items));
}

ExpressionParser::Node ExpressionParser::ParseExpression(bool with_condition) {
  const Level level(*this);
  return with_condition ? ParseCondition() : ParseOr();
}

ExpressionParser::Node ExpressionParser::ParseCondition() {
  const Level level(*this);  // `else` recurses
  const int line = stream_.line();
  Node value = ParseOr();
  while (stream_.SkipName("if")) {
    Node condition = ParseOr();
    Node otherwise = stream_.SkipName("else") ? ParseCondition() : nullptr;
    value = Make(Kind::kCondition, line, {value, condition, otherwise});
  }
  return value;
}

ExpressionParser::Node ExpressionParser::ParseOr() {
  const int line = stream_.line();
  Node left = ParseAnd();
  while (stream_.SkipName("or")) {
    Node right = ParseAnd();
    left = Make(Kind::kOr, line, {left, right});
  }
  return left;
}

ExpressionParser::Node ExpressionParser::ParseAnd() {
  const int line = stream_.line();
  Node left = ParseNot();
  while (stream_.SkipName("and")) {
    Node right = ParseNot();
    left = Make(Kind::kAnd, line, {left, right});
  }
  return left;
}

ExpressionParser::Node ExpressionParser::ParseNot() {
  const int line = stream_.line();
  if (!stream_.SkipName("not")) return ParseCompare();
  const Level level(*this);
  return Make(Kind::kNot, line, {ParseNot()});
}

namespace {

std::optional<CompareOp> TakeCompare(TokenStream& stream) {
  static constexpr std::pair<std::string_view, CompareOp> kOperators[] = {
      {"==", CompareOp::kEq}, {"!=", CompareOp::kNe}, {"<", CompareOp::kLt},
      {"<=", CompareOp::kLe}, {">", CompareOp::kGt},  {">=", CompareOp::kGe}};
  for (const auto& [text, op] : kOperators) {
    if (stream.SkipOperator(text)) return op;
  }
  if (stream.SkipName("in")) return CompareOp::kIn;
  if (stream.IsName("not") && stream.AheadIs(Type::kName, "in")) {
    stream.Next();
    stream.Next();
    return CompareOp::kNotIn;
  }
  return std::nullopt;
}

}  // namespace

ExpressionParser::Node ExpressionParser::ParseCompare() {
  const int line = stream_.line();
  Node first = ParseSum();
  Expression* node = nullptr;
  while (const auto op = TakeCompare(stream_)) {
    if (node == nullptr) node = Make(Kind::kCompare, line, {first});
    node->compares.push_back(*op);
    node->items.push_back(ParseSum());
  }
  return node == nullptr ? first : node;
}

ExpressionParser::Node ExpressionParser::ParseSum() {
  const int line = stream_.line();
  Node left = ParseConcat();
  while (stream_.IsOperator("+") || stream_.IsOperator("-")) {
    const BinaryOp op = stream_.Next().text == "+" ? BinaryOp::kAdd : BinaryOp::kSub;
    Node right = ParseConcat();
    left = MakeBinary(op, line, left, right);
  }
  return left;
}

ExpressionParser::Node ExpressionParser::ParseConcat() {
  const int line = stream_.line();
  Node first = ParseProduct();
  if (!stream_.IsOperator("~")) return first;
  Expression* node = Make(Kind::kConcat, line, {first});
  while (stream_.SkipOperator("~")) node->items.push_back(ParseProduct());
  return node;
}

ExpressionParser::Node ExpressionParser::ParseProduct() {
  static constexpr std::pair<std::string_view, BinaryOp> kOperators[] = {
      {"*", BinaryOp::kMul},
      {"/", BinaryOp::kDiv},
      {"//", BinaryOp::kFloorDiv},
      {"%", BinaryOp::kMod}};
  const int line = stream_.line();
  Node left = ParsePower();
  for (bool more = true; more;) {
    more = false;
    for (const auto& [text, op] : kOperators) {
      if (!stream_.SkipOperator(text)) continue;
      Node right = ParsePower();
      left = MakeBinary(op, line, left, right);
      more = true;
      break;
    }
  }
  return left;
}

ExpressionParser::Node ExpressionParser::ParsePower() {
  const int line = stream_.line();
  Node left = ParseUnary();
  while (stream_.SkipOperator("**")) {  // from the left, unlike Python
    Node right = ParseUnary();
    left = MakeBinary(BinaryOp::kPow, line, left, right);
  }
  return left;
}

ExpressionParser::Node ExpressionParser::ParseUnary(bool with_filters) {
  const Level level(*this);
  const int line = stream_.line();
  Node node;
  if (stream_.SkipOperator("-")) {
    node = Make(Kind::kNegate, line, {ParseUnary(false)});
  } else if (stream_.SkipOperator("+")) {
    node = Make(Kind::kPlus, line, {ParseUnary(false)});
  } else {
    node = ParsePrimary();
  }
  node = ParsePostfix(node);
  while (with_filters) {
    if (stream_.IsOperator("|")) {
      node = ParseFilters(node);
    } else if (stream_.IsName("is")) {
      node = ParseTest(node);
    } else if (stream_.IsOperator("(")) {
      node = ParseCall(node);
    } else {
      break;
    }
  }
  return node;
}

ExpressionParser::Node ExpressionParser::ParsePrimary() {
  const int line = stream_.line();
  switch (stream_.current().type) {
    case Type::kName:
      return ParseName();
    case Type::kString: {
      std::string text;
      while (stream_.Is(Type::kString)) text += stream_.Next().text;
      Expression* node = Make(Kind::kConstant, line);
      node->value = Value::String(Keep(std::move(text)));
      return node;
    }
    case Type::kInteger:
    case Type::kFloat: {
      Expression* node = Make(Kind::kConstant, line);
      node->value = stream_.Next().number;
      return node;
    }
    default:
      break;
  }
  if (stream_.IsOperator("[")) return ParseList();
  if (stream_.IsOperator("{")) return ParseDict();
  if (!stream_.SkipOperator("(")) stream_.Fail(Concat("unexpected ", stream_.Shown()));
  Node node = ParseTuple(true, {}, true);
  stream_.ExpectOperator(")");
  return node;
}

ExpressionParser::Node ExpressionParser::ParseName() {
  const int line = stream_.line();
  const std::string name = stream_.Next().text;
  const bool is_true = name == "true" || name == "True";
  if (is_true || name == "false" || name == "False") {
    Expression* node = Make(Kind::kConstant, line);
    node->value = Value::Bool(is_true);
    return node;
  }
  if (name == "none" || name == "None") {
    Expression* node = Make(Kind::kConstant, line);
    node->value = Value::None();
    return node;
  }
  AddUse({name == "varargs", name == "kwargs", name == "caller"});
  Expression* node = Make(Kind::kName, line);
  node->name = Keep(name);
  return node;
}

ExpressionParser::Node ExpressionParser::ParseList() {
  Expression* node = Make(Kind::kList, stream_.line());
  stream_.ExpectOperator("[");
  while (!stream_.IsOperator("]")) {
    node->items.push_back(ParseExpression());
    if (!stream_.SkipOperator(",")) break;
  }
  stream_.ExpectOperator("]");
  return node;
}

ExpressionParser::Node ExpressionParser::ParseDict() {
  Expression* node = Make(Kind::kDict, stream_.line());
  stream_.ExpectOperator("{");
  while (!stream_.IsOperator("}")) {
    node->items.push_back(ParseExpression());
    stream_.ExpectOperator(":");
    node->items.push_back(ParseExpression());
    if (!stream_.SkipOperator(",")) break;
  }
  stream_.ExpectOperator("}");
  return node;
}

ExpressionParser::Node ExpressionParser::ParsePostfix(Node node) {
  while (true) {
    if (stream_.IsOperator(".") || stream_.IsOperator("[")) {
      node = ParseSubscript(node);
    } else if (stream_.IsOperator("(")) {
      node = ParseCall(node);
    } else {
      return node;
    }
  }
}

ExpressionParser::Node ExpressionParser::ParseSubscript(Node node) {
  const int line = stream_.line();
  if (stream_.SkipOperator(".")) {
    if (stream_.Is(Type::kInteger)) {
      Expression* index = Make(Kind::kConstant, line);
      index->value = stream_.Next().number;
      return Make(Kind::kSubscript, line, {node, index});
    }
    Expression* attribute = Make(Kind::kAttribute, line, {node});
    attribute->name = Keep(stream_.Expect(Type::kName, "a name after '.'").text);
    return attribute;
  }
  stream_.ExpectOperator("[");
  Node parts[3] = {nullptr, nullptr, nullptr};
  size_t colons = 0;
  while (!stream_.IsOperator("]")) {
    if (stream_.IsOperator(":") && colons < 2) {
      stream_.Next();
      ++colons;
      continue;
    }
    if (parts[colons] != nullptr) {
      stream_.Fail("a subscript of several keys is not supported", ErrorKind::kUnsupported);
    }
    parts[colons] = ParseExpression();
    if (!stream_.IsOperator("]") && !stream_.IsOperator(":")) {
      if (stream_.IsOperator(",")) {
        stream_.Fail("a subscript of several keys is not supported", ErrorKind::kUnsupported);
      }
      break;
    }
  }
  stream_.ExpectOperator("]");
  if (colons > 0) return Make(Kind::kSlice, line, {node, parts[0], parts[1], parts[2]});
  if (parts[0] == nullptr) stream_.Fail("a subscript is empty");
  return Make(Kind::kSubscript, line, {node, parts[0]});
}

ExpressionParser::Node ExpressionParser::ParseCall(Node node) {
  Expression* call = Make(Kind::kCall, stream_.line(), {node});
  ParseArguments(call);
  return call;
}

void ExpressionParser::ParseArguments(Expression* call) {
  stream_.ExpectOperator("(");
  while (!stream_.IsOperator(")")) {
    ParseArgument(call);
    if (!stream_.SkipOperator(",")) break;
  }
  stream_.ExpectOperator(")");
}

void ExpressionParser::ParseArgument(Expression* call) {
  const auto check = [&](bool fine) {
    if (!fine) stream_.Fail("the arguments of a call are in a wrong order");
  };
  if (stream_.SkipOperator("*")) {
    check(call->spread == nullptr && call->spread_named == nullptr);
    call->spread = ParseExpression();
  } else if (stream_.SkipOperator("**")) {
    check(call->spread_named == nullptr);
    call->spread_named = ParseExpression();
  } else if (stream_.Is(Type::kName) && stream_.AheadIs(Type::kOperator, "=")) {
    check(call->spread_named == nullptr);
    const std::string_view name = Keep(stream_.Next().text);
    stream_.Next();
    call->named.emplace_back(name, ParseExpression());
  } else {
    check(call->spread == nullptr && call->spread_named == nullptr && call->named.empty());
    call->arguments.push_back(ParseExpression());
  }
}

ExpressionParser::Node ExpressionParser::ParseFilters(Node input, bool begun) {
  while (begun || stream_.SkipOperator("|")) {
    begun = false;
    Expression* filter = Make(Kind::kFilter, stream_.line(), {input});
    filter->name = Keep(stream_.Expect(Type::kName, "the name of a filter").text);
    if (stream_.IsOperator("(")) ParseArguments(filter);
    input = filter;
  }
  return input;
}

ExpressionParser::Node ExpressionParser::ParseTest(Node node) {
  stream_.Next();  // is
  const bool negated = stream_.SkipName("not");
  Expression* test = Make(Kind::kTest, stream_.line(), {node});
  test->name = Keep(stream_.Expect(Type::kName, "the name of a test").text);
  const bool operand = stream_.Is(Type::kName) || stream_.Is(Type::kString) ||
                       stream_.Is(Type::kInteger) || stream_.Is(Type::kFloat) ||
                       stream_.IsOperator("[") || stream_.IsOperator("{");
  const bool keyword = stream_.IsName("else") || stream_.IsName("or") || stream_.IsName("and");
  if (stream_.IsOperator("(")) {
    ParseArguments(test);
  } else if (operand && !keyword) {
    if (stream_.IsName("is")) stream_.Fail("tests cannot follow each other");
    Node argument = ParsePrimary();
    test->arguments.push_back(ParsePostfix(argument));
  }
  if (!negated) return test;
  return Make(Kind::kNot, test->line, {test});
}

}  // namespace sparsekv::chat
