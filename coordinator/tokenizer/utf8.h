#pragma once

#include <cstddef>
#include <string>
#include <string_view>

// UTF-8, one character at a time, for text that may hold invalid bytes. Pure functions.
namespace sparsekv::tokenizer {

// What stands at the start of a text.
struct Utf8Char {
  enum class Kind {
    kValid,       // a whole character of `length` bytes
    kInvalid,     // `length` bytes that no continuation can make valid
    kIncomplete,  // the text ends inside a character that may still become valid
  };
  Kind kind;
  size_t length;        // bytes, at least 1
  char32_t code_point;  // U+FFFD unless kValid
};

// REQUIRES: text is not empty. Invalid bytes are cut as the Unicode standard recommends: the
// longest start of a valid character, or one byte.
Utf8Char FirstUtf8Char(std::string_view text);

// The character that ends the text; what is not whole and valid there is one invalid byte.
// REQUIRES: text is not empty.
Utf8Char LastUtf8Char(std::string_view text);

// Length of the longest valid start of the text, in bytes.
size_t ValidUtf8Prefix(std::string_view text);

// REQUIRES: code_point is a Unicode scalar value.
void AppendUtf8(char32_t code_point, std::string* out);

// The Unicode property White_Space.
bool IsWhiteSpace(char32_t code_point);

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace sparsekv::tokenizer
