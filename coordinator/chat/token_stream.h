#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/concat.h"
#include "coordinator/chat/error.h"
#include "coordinator/chat/lexer.h"

namespace sparsekv::chat {

// Tokens as a parser reads them: one at a time, the next one known.
class TokenStream {
 public:
  explicit TokenStream(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  const Token& current() const { return tokens_[position_]; }
  const Token& ahead() const {
    return tokens_[position_ + 1 < tokens_.size() ? position_ + 1 : position_];
  }
  int line() const { return current().line; }

  Token Next() {
    if (Is(Token::Type::kEnd)) return current();
    return std::move(tokens_[position_++]);
  }
  bool Is(Token::Type type) const { return current().type == type; }
  bool IsOperator(std::string_view text) const {
    return Is(Token::Type::kOperator) && current().text == text;
  }
  bool IsName(std::string_view text) const {
    return Is(Token::Type::kName) && current().text == text;
  }
  bool AheadIs(Token::Type type, std::string_view text) const {
    return ahead().type == type && ahead().text == text;
  }
  bool SkipOperator(std::string_view text) { return IsOperator(text) && (Next(), true); }
  bool SkipName(std::string_view text) { return IsName(text) && (Next(), true); }

  Token Expect(Token::Type type, std::string_view described) {
    if (!Is(type)) Fail(Concat("expected ", described, ", got ", Shown()));
    return Next();
  }
  void ExpectOperator(std::string_view text) {
    if (!SkipOperator(text)) Fail(Concat("expected '", text, "', got ", Shown()));
  }

  // The current token as errors show it.
  std::string Shown() const {
    switch (current().type) {
      case Token::Type::kEnd:
        return "the end of the template";
      case Token::Type::kTagEnd:
        return "the end of the tag";
      case Token::Type::kPrintEnd:
        return "'}}'";
      case Token::Type::kString:
        return "a string";
      case Token::Type::kInteger:
      case Token::Type::kFloat:
        return "a number";
      default:
        return Concat("'", current().text.substr(0, 40), "'");
    }
  }

  [[noreturn]] void Fail(std::string message, ErrorKind kind = ErrorKind::kSyntax) const {
    throw TemplateError{kind, std::move(message), line()};
  }

 private:
  std::vector<Token> tokens_;
  size_t position_ = 0;
};

}  // namespace sparsekv::chat
