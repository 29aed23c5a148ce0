#include "coordinator/chat/string_literal.h"

#include <charconv>
#include <cstdint>
#include <cstdio>

#include "coordinator/chat/text.h"
#include "coordinator/tokenizer/utf8.h"

namespace sparsekv::chat {

namespace {

// Reads up to `most` digits of `base`, at least `least`.
std::optional<uint32_t> ReadDigits(std::string_view text, int base, size_t least, size_t most) {
  text = text.substr(0, most);
  uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc() || static_cast<size_t>(end - text.data()) < least) return std::nullopt;
  return value;
}

// Jinja turns characters beyond ASCII into escapes before it reads escapes, which shows where a
// backslash stands before one: it then escapes the backslash of that escape.
std::string EscapeCode(char32_t c) {
  char code[12];
  const char* format = c < 0x100 ? "x%02x" : c < 0x10000 ? "u%04x" : "U%08x";
  std::snprintf(code, sizeof code, format, static_cast<unsigned>(c));
  return code;
}

}  // namespace

std::optional<std::string> Unescape(std::string_view literal) {
  constexpr std::string_view kNames = "abfnrtv\\'\"", kValues = "\a\b\f\n\r\t\v\\'\"";
  std::string text;
  for (size_t i = 0; i < literal.size();) {
    if (literal[i] != '\\') {
      text += literal[i++];
      continue;
    }
    if (++i == literal.size()) return std::nullopt;
    const char c = literal[i];
    if (const size_t name = kNames.find(c); name != std::string_view::npos) {
      text += kValues[name];
      ++i;
    } else if (c == '\n') {
      ++i;
    } else if (c == 'x' || c == 'u' || c == 'U') {
      const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
      const auto code = ReadDigits(literal.substr(i + 1), 16, digits, digits);
      if (!code || *code > 0x10ffff || (*code >= 0xd800 && *code < 0xe000)) return std::nullopt;
      tokenizer::AppendUtf8(*code, &text);
      i += 1 + digits;
    } else if (c >= '0' && c <= '7') {
      size_t digits = 1;
      while (digits < 3 && i + digits < literal.size() && literal[i + digits] >= '0' &&
             literal[i + digits] <= '7') {
        ++digits;
      }
      tokenizer::AppendUtf8(*ReadDigits(literal.substr(i), 8, digits, digits), &text);
      i += digits;
    } else if (c == 'N') {
      return std::nullopt;
    } else if (static_cast<unsigned char>(c) >= 0x80) {
      text += '\\' + EscapeCode(CharacterAt(literal, i));
      i += CharacterLength(c);
    } else {
      text += '\\';
    }
  }
  return text;
}

}  // namespace sparsekv::chat
