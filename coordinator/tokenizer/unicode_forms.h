#pragma once

#include <string>
#include <string_view>

// Unicode's normal forms and character classes, by ICU. Text may hold invalid UTF-8: invalid bytes
// stay as they are and nothing is composed or ordered across them. Pure functions.
//
// Hugging Face's `tokenizers` normalise by the tables of Unicode 9.0 in every version, so here too
// a character that came later is left alone by NormalForm and StripAccents.
namespace sparsekv::tokenizer {

enum class UnicodeForm { kNfc, kNfd, kNfkc, kNfkd };

// Takes O(n log n), also for a text that is one run of combining marks.
std::string NormalForm(UnicodeForm form, std::string_view text);

// Without its marks (general category M).
std::string StripAccents(std::string_view text);

// Each character by itself, without regard to its place: a final sigma stays an ordinary one.
std::string Lowercase(std::string_view text);

// White space taken off the ends.
std::string_view StripWhiteSpace(std::string_view text, bool left, bool right);

// A character class, as PCRE2 writes it, of what `tokenizers` take for punctuation: Unicode 8.0's
// and ASCII's symbols.
std::string PunctuationClass();

}  // namespace sparsekv::tokenizer
