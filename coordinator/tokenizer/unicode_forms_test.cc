#include "coordinator/tokenizer/unicode_forms.h"

#include <gtest/gtest.h>

#include "coordinator/tokenizer/regex.h"

namespace sparsekv::tokenizer {
namespace {

constexpr UnicodeForm kNfc = UnicodeForm::kNfc;
constexpr UnicodeForm kNfd = UnicodeForm::kNfd;
constexpr UnicodeForm kNfkc = UnicodeForm::kNfkc;
constexpr UnicodeForm kNfkd = UnicodeForm::kNfkd;

TEST(UnicodeForms, ComposesAndDecomposes) {
  EXPECT_EQ(NormalForm(kNfc, "e\u0301 \u212B"), "é Å");
  EXPECT_EQ(NormalForm(kNfd, "é 각"), "e\u0301 \u1100\u1161\u11a8");
  EXPECT_EQ(NormalForm(kNfc, "\u1100\u1161\u11a8"), "각");
  EXPECT_EQ(NormalForm(kNfkc, "ﬁ²"), "fi2");
  EXPECT_EQ(NormalForm(kNfkd, "ﬁé"), "fie\u0301");
  EXPECT_EQ(NormalForm(kNfc, "\u0958"), "\u0915\u093c");  // excluded from composition
  EXPECT_EQ(NormalForm(kNfc, ""), "");
}

TEST(UnicodeForms, MarksAreOrderedAndBlocked) {
  EXPECT_EQ(NormalForm(kNfd, "a\u0301\u0316"), "a\u0316\u0301");
  EXPECT_EQ(NormalForm(kNfc, "a\u0316\u0301"), "á\u0316");
  EXPECT_EQ(NormalForm(kNfc, "a\u0305\u0301"), "a\u0305\u0301");  // same class: blocked
}

TEST(UnicodeForms, InvalidBytesStayAndSeparate) {
  EXPECT_EQ(NormalForm(kNfc, "e\xFF\u0301"), "e\xFF\u0301");
  EXPECT_EQ(NormalForm(kNfc, "\xC3"), "\xC3");
  EXPECT_EQ(Lowercase("A\xFF\xC3"), "a\xFF\xC3");
  EXPECT_EQ(StripAccents("e\u0301\xE2\x82"), "e\xE2\x82");
  EXPECT_EQ(StripWhiteSpace(" \xFF ", true, true), "\xFF");
}

TEST(UnicodeForms, CharactersAfterUnicode9AreLeftAlone) {
  EXPECT_EQ(NormalForm(kNfkc, "\u32FF"), "\u32FF");  // of 12.1
  EXPECT_EQ(StripAccents("a\u07FD"), "a\u07FD");     // of 11.0
}

TEST(UnicodeForms, LowercaseGoesCharacterByCharacter) {
  EXPECT_EQ(Lowercase("ΑΣ İǅ"), "ασ i\u0307ǆ");
}

TEST(UnicodeForms, WhiteSpaceIsStrippedWhereAsked) {
  EXPECT_EQ(StripWhiteSpace(" \u3000a\u00A0", true, false), "a\u00A0");
  EXPECT_EQ(StripWhiteSpace(" \u3000a\u00A0", false, true), " \u3000a");
  EXPECT_EQ(StripWhiteSpace(" \n", true, true), "");
}

TEST(UnicodeForms, PunctuationIsUnicodesAndAsciisSymbols) {
  const auto regex = *Regex::Compile(PunctuationClass());
  for (const char* text : {"!", "$", "~", "^", "¿", "。", "—"}) {
    EXPECT_TRUE(regex->Find(text, 0)->has_value()) << text;
  }
  for (const char* text : {"a", "1", " ", "€", "\u2E52"}) {  // the last one is of Unicode 13
    EXPECT_FALSE(regex->Find(text, 0)->has_value()) << text;
  }
}

}  // namespace
}  // namespace sparsekv::tokenizer
