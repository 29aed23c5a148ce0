#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

// GPT-2's alphabet: byte-level vocabularies write each byte as one printable character (a space is
// "Ġ"), so that a token is always a readable string. Pure functions.
namespace sparsekv::tokenizer {

char32_t CharOfByte(uint8_t byte);

// The bytes that a token's text stands for; nothing if a character of it is outside the alphabet.
std::optional<std::string> BytesOfToken(std::string_view token);

// The byte that a byte-fallback token such as "<0x0A>" stands for; nothing for any other token.
std::optional<uint8_t> ByteOfFallbackToken(std::string_view token);

// The inverse: "<0x0A>" for 10.
std::string FallbackTokenOfByte(uint8_t byte);

}  // namespace sparsekv::tokenizer
