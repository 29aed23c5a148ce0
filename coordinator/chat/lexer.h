#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "coordinator/chat/limits.h"
#include "coordinator/chat/value.h"

namespace sparsekv::chat {

// A piece of a template. Tags are cut into words; text between them is one token.
struct Token {
  enum class Type : uint8_t {
    kText,
    kPrintBegin,  // {{
    kPrintEnd,
    kTagBegin,  // {%
    kTagEnd,
    kName,
    kString,
    kInteger,
    kFloat,
    kOperator,
    kEnd,
  };
  Type type;
  int line;
  std::string text;   // kText, kName, kString (unescaped) and kOperator
  Value number = {};  // kInteger, kFloat
};

// Cuts a template as Jinja does with trim_blocks and lstrip_blocks: the first line end after a tag
// and the blanks before one on its line are dropped, `-` strips more and `+` less, one line end at
// the end of the template is dropped. Comments and {% raw %} are gone afterwards. The last token is
// kEnd. Throws kSyntax. REQUIRES: source is valid UTF-8.
std::vector<Token> Tokenize(std::string_view source);

}  // namespace sparsekv::chat
