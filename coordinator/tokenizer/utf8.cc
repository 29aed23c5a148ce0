#include "coordinator/tokenizer/utf8.h"

#include <algorithm>
#include <cstdint>

namespace sparsekv::tokenizer {
namespace {

constexpr char32_t kReplacement = 0xFFFD;

// What a first byte promises: the length, its own payload and the range of the second byte (which
// is what rules out overlong forms, surrogates and values past U+10FFFF).
struct Lead {
  size_t length;  // 0: no character starts with this byte
  uint8_t payload;
  uint8_t second_min;
  uint8_t second_max;
};

Lead LeadOf(uint8_t byte) {
  if (byte < 0x80) return {1, byte, 0, 0};
  if (byte < 0xC2) return {0, 0, 0, 0};
  if (byte < 0xE0) return {2, static_cast<uint8_t>(byte & 0x1F), 0x80, 0xBF};
  if (byte < 0xF0) {
    const uint8_t min = byte == 0xE0 ? 0xA0 : 0x80;
    const uint8_t max = byte == 0xED ? 0x9F : 0xBF;
    return {3, static_cast<uint8_t>(byte & 0x0F), min, max};
  }
  if (byte < 0xF5) {
    const uint8_t min = byte == 0xF0 ? 0x90 : 0x80;
    const uint8_t max = byte == 0xF4 ? 0x8F : 0xBF;
    return {4, static_cast<uint8_t>(byte & 0x07), min, max};
  }
  return {0, 0, 0, 0};
}

}  // namespace

Utf8Char FirstUtf8Char(std::string_view text) {
  const Lead lead = LeadOf(static_cast<uint8_t>(text[0]));
  if (lead.length == 0) return {Utf8Char::Kind::kInvalid, 1, kReplacement};
  char32_t code_point = lead.payload;
  for (size_t i = 1; i < lead.length; ++i) {
    if (i == text.size()) return {Utf8Char::Kind::kIncomplete, i, kReplacement};
    const uint8_t byte = static_cast<uint8_t>(text[i]);
    const uint8_t min = i == 1 ? lead.second_min : 0x80;
    const uint8_t max = i == 1 ? lead.second_max : 0xBF;
    if (byte < min || byte > max) return {Utf8Char::Kind::kInvalid, i, kReplacement};
    code_point = (code_point << 6) | (byte & 0x3F);
  }
  return {Utf8Char::Kind::kValid, lead.length, code_point};
}

Utf8Char LastUtf8Char(std::string_view text) {
  for (size_t length = 1; length <= std::min<size_t>(4, text.size()); ++length) {
    const Utf8Char last = FirstUtf8Char(text.substr(text.size() - length));
    if (last.kind == Utf8Char::Kind::kValid && last.length == length) return last;
  }
  return {Utf8Char::Kind::kInvalid, 1, kReplacement};
}

size_t ValidUtf8Prefix(std::string_view text) {
  size_t length = 0;
  while (length < text.size()) {
    if (static_cast<uint8_t>(text[length]) < 0x80) {
      ++length;
      continue;
    }
    const Utf8Char next = FirstUtf8Char(text.substr(length));
    if (next.kind != Utf8Char::Kind::kValid) break;
    length += next.length;
  }
  return length;
}

void AppendUtf8(char32_t code_point, std::string* out) {
  const auto tail = [&](int shift) {
    out->push_back(static_cast<char>(0x80 | ((code_point >> shift) & 0x3F)));
  };
  if (code_point < 0x80) {
    out->push_back(static_cast<char>(code_point));
  } else if (code_point < 0x800) {
    out->push_back(static_cast<char>(0xC0 | (code_point >> 6)));
    tail(0);
  } else if (code_point < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | (code_point >> 12)));
    tail(6);
    tail(0);
  } else {
    out->push_back(static_cast<char>(0xF0 | (code_point >> 18)));
    tail(12);
    tail(6);
    tail(0);
  }
}

bool IsWhiteSpace(char32_t code_point) {
  if (code_point >= 0x09 && code_point <= 0x0D) return true;
  if (code_point >= 0x2000 && code_point <= 0x200A) return true;
  switch (code_point) {
    case 0x20:
    case 0x85:
    case 0xA0:
    case 0x1680:
    case 0x2028:
    case 0x2029:
    case 0x202F:
    case 0x205F:
    case 0x3000:
      return true;
    default:
      return false;
  }
}

}  // namespace sparsekv::tokenizer
