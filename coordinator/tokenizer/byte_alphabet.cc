#include "coordinator/tokenizer/byte_alphabet.h"

#include <array>

#include "coordinator/tokenizer/utf8.h"

namespace sparsekv::tokenizer {
namespace {

constexpr char32_t kFirstSubstitute = 0x100;  // unprintable bytes become U+0100 and up, in order
constexpr size_t kAlphabetEnd = 0x144;        // one past the last substitute

constexpr bool StandsForItself(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

struct Alphabet {
  std::array<char32_t, 256> char_of_byte{};
  std::array<int16_t, kAlphabetEnd> byte_of_char{};  // -1: not in the alphabet
};

constexpr Alphabet MakeAlphabet() {
  Alphabet alphabet;
  alphabet.byte_of_char.fill(-1);
  char32_t substitute = kFirstSubstitute;
  for (int byte = 0; byte < 256; ++byte) {
    const char32_t c = StandsForItself(byte) ? static_cast<char32_t>(byte) : substitute++;
    alphabet.char_of_byte[byte] = c;
    alphabet.byte_of_char[c] = static_cast<int16_t>(byte);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = MakeAlphabet();
static_assert(kAlphabet.char_of_byte[0xAD] == kAlphabetEnd - 1);

constexpr std::string_view kHexDigits = "0123456789ABCDEF";

std::optional<int> HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return std::nullopt;
}

}  // namespace

char32_t CharOfByte(uint8_t byte) { return kAlphabet.char_of_byte[byte]; }

std::optional<std::string> BytesOfToken(std::string_view token) {
  std::string bytes;
  while (!token.empty()) {
    const Utf8Char c = FirstUtf8Char(token);
    if (c.code_point >= kAlphabetEnd || kAlphabet.byte_of_char[c.code_point] < 0) {
      return std::nullopt;
    }
    bytes.push_back(static_cast<char>(kAlphabet.byte_of_char[c.code_point]));
    token.remove_prefix(c.length);
  }
  return bytes;
}

std::optional<uint8_t> ByteOfFallbackToken(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  const std::optional<int> high = HexValue(token[3]);
  const std::optional<int> low = HexValue(token[4]);
  if (!high || !low) return std::nullopt;
  return static_cast<uint8_t>(*high * 16 + *low);
}

std::string FallbackTokenOfByte(uint8_t byte) {
  return {'<', '0', 'x', kHexDigits[byte >> 4], kHexDigits[byte & 15], '>'};
}

}  // namespace sparsekv::tokenizer
