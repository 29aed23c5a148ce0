#include "coordinator/tokenizer/utf8.h"

#include <gtest/gtest.h>

#include "coordinator/tokenizer/byte_alphabet.h"

namespace sparsekv::tokenizer {
namespace {

using Kind = Utf8Char::Kind;

TEST(Utf8, EveryScalarValueComesBack) {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string text;
    AppendUtf8(c, &text);
    const Utf8Char first = FirstUtf8Char(text);
    ASSERT_EQ(first.kind, Kind::kValid) << static_cast<uint32_t>(c);
    ASSERT_EQ(first.code_point, c);
    ASSERT_EQ(first.length, text.size());
    ASSERT_EQ(LastUtf8Char("é" + text).code_point, c);
    for (size_t cut = 1; cut < text.size(); ++cut) {
      const Utf8Char part = FirstUtf8Char(std::string_view(text).substr(0, cut));
      ASSERT_EQ(part.kind, Kind::kIncomplete);
      ASSERT_EQ(part.length, cut);
    }
  }
}

TEST(Utf8, InvalidBytesAreCutAtTheLongestStartOfACharacter) {
  const struct {
    std::string_view text;
    size_t length;
  } cases[] = {
      {"\x80", 1},              // a continuation without a start
      {"\xC0\x80", 1},          // overlong
      {"\xC1\xBF", 1},          //
      {"\xE0\x80\x80", 1},      //
      {"\xF0\x80\x80\x80", 1},  //
      {"\xED\xA0\x80", 1},      // a surrogate
      {"\xF4\x90\x80\x80", 1},  // past U+10FFFF
      {"\xFF", 1},              //
      {"\xE2\x96x", 2},         // a character broken off
      {"\xF0\x9F\xA6x", 3},     //
      {"\xC3\xC3", 1},          //
  };
  for (const auto& c : cases) {
    const Utf8Char first = FirstUtf8Char(c.text);
    EXPECT_EQ(first.kind, Kind::kInvalid) << testing::PrintToString(c.text);
    EXPECT_EQ(first.length, c.length) << testing::PrintToString(c.text);
    EXPECT_EQ(ValidUtf8Prefix(c.text), 0u);
  }
  EXPECT_EQ(ValidUtf8Prefix("aé\xFFz"), 3u);
  EXPECT_EQ(LastUtf8Char("a\x80").kind, Kind::kInvalid);
}

TEST(Utf8, WhiteSpaceIsUnicodes) {
  for (const char32_t c : {0x20, 0x0A, 0x85, 0xA0, 0x2003, 0x3000}) EXPECT_TRUE(IsWhiteSpace(c));
  for (const char32_t c : {0x21, 0x1C, 0x200B, 0x180E, 0xFEFF}) EXPECT_FALSE(IsWhiteSpace(c));
}

TEST(ByteAlphabet, EachByteHasItsOwnCharacter) {
  for (int byte = 0; byte < 256; ++byte) {
    std::string token;
    AppendUtf8(CharOfByte(static_cast<uint8_t>(byte)), &token);
    EXPECT_EQ(BytesOfToken(token), std::string(1, static_cast<char>(byte)));
    EXPECT_EQ(ByteOfFallbackToken(FallbackTokenOfByte(static_cast<uint8_t>(byte))), byte);
  }
  EXPECT_EQ(BytesOfToken("Ġhi"), " hi");
  EXPECT_EQ(BytesOfToken("a b"), std::nullopt);  // a space is written Ġ
  EXPECT_EQ(BytesOfToken("▁"), std::nullopt);
  EXPECT_EQ(ByteOfFallbackToken("<0x0A>"), 10);
  EXPECT_EQ(ByteOfFallbackToken("<0x0G>"), std::nullopt);
  EXPECT_EQ(ByteOfFallbackToken("<0x0A>>"), std::nullopt);
}

}  // namespace
}  // namespace sparsekv::tokenizer
