#include "coordinator/chat/text.h"

#include <string.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "coordinator/chat/unicode.h"
#include "coordinator/tokenizer/utf8.h"

namespace sparsekv::chat {

namespace {

bool IsContinuation(char byte) { return (static_cast<unsigned char>(byte) & 0xc0) == 0x80; }

// Where the last character of the text begins. REQUIRES: it is not empty.
size_t LastCharacter(std::string_view text) {
  size_t byte = text.size() - 1;
  while (byte > 0 && IsContinuation(text[byte])) --byte;
  return byte;
}

bool IsStripped(std::string_view character, std::optional<std::string_view> set) {
  if (!set) return IsSpace(CharacterAt(character, 0));
  return set->find(character) != std::string_view::npos;  // UTF-8: only whole characters match
}

bool IsCased(char32_t c) { return IsLower(c) || IsUpper(c); }

// A sigma is final when a cased character is before it and none after it.
bool IsFinalSigma(std::string_view text, size_t byte) {
  if (byte == 0) return false;
  const std::string_view before = text.substr(0, byte);
  const size_t after = byte + CharacterLength(text[byte]);
  return IsCased(CharacterAt(before, LastCharacter(before))) &&
         (after == text.size() || !IsCased(CharacterAt(text, after)));
}

void AppendLowerAt(std::string_view text, size_t byte, std::string* out) {
  const char32_t c = CharacterAt(text, byte);
  if (c == 0x3a3) {
    *out += IsFinalSigma(text, byte) ? "\xCF\x82" : "\xCF\x83";
  } else {
    AppendLower(c, out);
  }
}

template <typename Append>
std::string Map(std::string_view text, Append append) {
  std::string out;
  out.reserve(text.size());
  for (size_t byte = 0; byte < text.size(); byte += CharacterLength(text[byte])) append(byte, &out);
  return out;
}

bool IsLineEnd(char32_t c) {
  return (c >= 10 && c <= 13) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

}  // namespace

size_t CharacterLength(char first_byte) {
  const unsigned char byte = static_cast<unsigned char>(first_byte);
  return byte < 0x80 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
}

size_t CountCharacters(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return !IsContinuation(c); }));
}

char32_t CharacterAt(std::string_view text, size_t byte) {
  const unsigned char first = static_cast<unsigned char>(text[byte]);
  if (first < 0x80) return first;
  return tokenizer::FirstUtf8Char(text.substr(byte)).code_point;
}

size_t ByteOffset(std::string_view text, size_t index) {
  size_t byte = 0;
  for (; index > 0 && byte < text.size(); --index) byte += CharacterLength(text[byte]);
  return byte;
}

size_t FindText(std::string_view text, std::string_view part) {
  if (part.empty()) return 0;
  if (text.size() < part.size()) return std::string_view::npos;
  const void* found = memmem(text.data(), text.size(), part.data(), part.size());
  if (found == nullptr) return std::string_view::npos;
  return static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

std::string_view StripLeft(std::string_view text, std::optional<std::string_view> set) {
  while (!text.empty()) {
    const size_t length = CharacterLength(text[0]);
    if (!IsStripped(text.substr(0, length), set)) break;
    text.remove_prefix(length);
  }
  return text;
}

std::string_view StripRight(std::string_view text, std::optional<std::string_view> set) {
  while (!text.empty()) {
    const size_t last = LastCharacter(text);
    if (!IsStripped(text.substr(last), set)) break;
    text = text.substr(0, last);
  }
  return text;
}

std::string Upper(std::string_view text) {
  return Map(text,
             [&](size_t byte, std::string* out) { AppendUpper(CharacterAt(text, byte), out); });
}

std::string Lower(std::string_view text) {
  return Map(text, [&](size_t byte, std::string* out) { AppendLowerAt(text, byte, out); });
}

std::string Capitalize(std::string_view text) {
  return Map(text, [&](size_t byte, std::string* out) {
    if (byte == 0) {
      AppendTitle(CharacterAt(text, byte), out);
    } else {
      AppendLowerAt(text, byte, out);
    }
  });
}

std::string Title(std::string_view text) {
  bool in_word = false;
  return Map(text, [&](size_t byte, std::string* out) {
    const char32_t c = CharacterAt(text, byte);
    if (in_word) {
      AppendLowerAt(text, byte, out);
    } else {
      AppendTitle(c, out);
    }
    in_word = IsCased(c);
  });
}

std::string TitleWords(std::string_view text) {
  constexpr std::string_view kSeparators = "-({[<";
  bool in_word = false;
  return Map(text, [&](size_t byte, std::string* out) {
    const char32_t c = CharacterAt(text, byte);
    if (IsSpace(c) || (c < 0x80 && kSeparators.find(text[byte]) != std::string_view::npos)) {
      tokenizer::AppendUtf8(c, out);
      in_word = false;
    } else {
      if (in_word) {
        AppendLowerAt(text, byte, out);
      } else {
        AppendUpper(c, out);
      }
      in_word = true;
    }
  });
}

std::vector<std::string_view> SplitSpace(std::string_view text, int64_t most) {
  std::vector<std::string_view> parts;
  text = StripLeft(text, std::nullopt);
  while (!text.empty()) {
    if (most >= 0 && static_cast<int64_t>(parts.size()) == most) {
      parts.push_back(StripRight(text, std::nullopt));
      break;
    }
    size_t end = 0;
    while (end < text.size() && !IsSpace(CharacterAt(text, end))) end += CharacterLength(text[end]);
    parts.push_back(text.substr(0, end));
    text = StripLeft(text.substr(end), std::nullopt);
  }
  return parts;
}

std::vector<std::string_view> Split(std::string_view text, std::string_view by, int64_t most) {
  std::vector<std::string_view> parts;
  while (most < 0 || static_cast<int64_t>(parts.size()) < most) {
    const size_t at = FindText(text, by);
    if (at == std::string_view::npos) break;
    parts.push_back(text.substr(0, at));
    text.remove_prefix(at + by.size());
  }
  parts.push_back(text);
  return parts;
}

std::vector<std::string_view> SplitSpaceRight(std::string_view text, int64_t most) {
  std::vector<std::string_view> parts;
  text = StripRight(text, std::nullopt);
  while (!text.empty()) {
    if (most >= 0 && static_cast<int64_t>(parts.size()) == most) {
      parts.push_back(StripLeft(text, std::nullopt));
      break;
    }
    size_t begin = text.size();
    while (begin > 0) {
      const size_t last = LastCharacter(text.substr(0, begin));
      if (IsSpace(CharacterAt(text, last))) break;
      begin = last;
    }
    parts.push_back(text.substr(begin));
    text = StripRight(text.substr(0, begin), std::nullopt);
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<std::string_view> SplitRight(std::string_view text, std::string_view by, int64_t most) {
  std::vector<std::string_view> parts;
  while (most < 0 || static_cast<int64_t>(parts.size()) < most) {
    const size_t at = text.rfind(by);
    if (at == std::string_view::npos) break;
    parts.push_back(text.substr(at + by.size()));
    text = text.substr(0, at);
  }
  parts.push_back(text);
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<std::string_view> SplitLines(std::string_view text, int64_t most, bool keep_ends) {
  std::vector<std::string_view> lines;
  size_t begin = 0;
  for (size_t byte = 0; byte < text.size();) {
    if (most >= 0 && static_cast<int64_t>(lines.size()) == most) break;
    const char32_t c = CharacterAt(text, byte);
    size_t end = byte + CharacterLength(text[byte]);
    if (IsLineEnd(c)) {
      if (c == '\r' && end < text.size() && text[end] == '\n') ++end;
      lines.push_back(text.substr(begin, (keep_ends ? end : byte) - begin));
      begin = end;
    }
    byte = end;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

void AppendRepr(std::string_view text, std::string* out) {
  const bool single = text.find('\'') == std::string_view::npos;
  const char quote = single || text.find('"') != std::string_view::npos ? '\'' : '"';
  *out += quote;
  for (size_t byte = 0; byte < text.size(); byte += CharacterLength(text[byte])) {
    const char32_t c = CharacterAt(text, byte);
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      *out += '\\';
      *out += static_cast<char>(c);
    } else if (c == '\n' || c == '\r' || c == '\t') {
      *out += c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t";
    } else if (IsPrintable(c)) {
      *out += text.substr(byte, CharacterLength(text[byte]));
    } else {
      char escaped[12];
      const char* format = c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x";
      *out += std::string_view(
          escaped, static_cast<size_t>(
                       std::snprintf(escaped, sizeof escaped, format, static_cast<unsigned>(c))));
    }
  }
  *out += quote;
}

std::string FloatRepr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[40];
  const auto written =
      std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific);
  const std::string_view shortest(buffer, static_cast<size_t>(written.ptr - buffer));
  const size_t e = shortest.find('e');
  const int exponent = std::atoi(std::string(shortest.substr(e + 1)).c_str());
  if (exponent < -4 || exponent >= 16) return std::string(shortest);
  char fixed[64];
  const auto plain = std::to_chars(fixed, fixed + sizeof fixed, value, std::chars_format::fixed);
  std::string text(fixed, static_cast<size_t>(plain.ptr - fixed));
  if (text.find('.') == std::string::npos) text += ".0";
  return text;
}

}  // namespace sparsekv::chat
