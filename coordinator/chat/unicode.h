#pragma once

#include <string>

// What Python knows about single characters; the C library's tables of the locale C.UTF-8 serve
// where they agree with it. Pure functions, thread-safe.
namespace sparsekv::chat {

bool IsSpace(char32_t c);      // str.isspace
bool IsPrintable(char32_t c);  // str.isprintable: repr writes it as it is
bool IsLower(char32_t c);
bool IsUpper(char32_t c);

// Appends the mapping to `out`; one character may become three.
void AppendUpper(char32_t c, std::string* out);
void AppendTitle(char32_t c, std::string* out);
// Of a sigma that ends no word; text.cc knows about words.
void AppendLower(char32_t c, std::string* out);

}  // namespace sparsekv::chat
