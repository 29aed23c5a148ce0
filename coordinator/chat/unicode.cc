#include "coordinator/chat/unicode.h"

#include <locale.h>
#include <wctype.h>

#include <algorithm>
#include <string_view>

#include "base/check.h"
#include "coordinator/tokenizer/utf8.h"

namespace sparsekv::chat {

namespace {

struct Special {
  char32_t character;
  std::u32string_view upper;
};

// Characters whose upper case is longer (Unicode's SpecialCasing, without conditions), but for the
// Greek block that AppendUpper computes.
constexpr Special kSpecials[] = {{0xdf, U"SS"},
                                 {0x149, U"\u02bcN"},
                                 {0x1f0, U"J\u030c"},
                                 {0x390, U"\u0399\u0308\u0301"},
                                 {0x3b0, U"\u03a5\u0308\u0301"},
                                 {0x587, U"\u0535\u0552"},
                                 {0x1e96, U"H\u0331"},
                                 {0x1e97, U"T\u0308"},
                                 {0x1e98, U"W\u030a"},
                                 {0x1e99, U"Y\u030a"},
                                 {0x1e9a, U"A\u02be"},
                                 {0x1f50, U"\u03a5\u0313"},
                                 {0x1f52, U"\u03a5\u0313\u0300"},
                                 {0x1f54, U"\u03a5\u0313\u0301"},
                                 {0x1f56, U"\u03a5\u0313\u0342"},
                                 {0x1fb2, U"\u1fba\u0399"},
                                 {0x1fb3, U"\u0391\u0399"},
                                 {0x1fb4, U"\u0386\u0399"},
                                 {0x1fb6, U"\u0391\u0342"},
                                 {0x1fb7, U"\u0391\u0342\u0399"},
                                 {0x1fbc, U"\u0391\u0399"},
                                 {0x1fc2, U"\u1fca\u0399"},
                                 {0x1fc3, U"\u0397\u0399"},
                                 {0x1fc4, U"\u0389\u0399"},
                                 {0x1fc6, U"\u0397\u0342"},
                                 {0x1fc7, U"\u0397\u0342\u0399"},
                                 {0x1fcc, U"\u0397\u0399"},
                                 {0x1fd2, U"\u0399\u0308\u0300"},
                                 {0x1fd3, U"\u0399\u0308\u0301"},
                                 {0x1fd6, U"\u0399\u0342"},
                                 {0x1fd7, U"\u0399\u0308\u0342"},
                                 {0x1fe2, U"\u03a5\u0308\u0300"},
                                 {0x1fe3, U"\u03a5\u0308\u0301"},
                                 {0x1fe4, U"\u03a1\u0313"},
                                 {0x1fe6, U"\u03a5\u0342"},
                                 {0x1fe7, U"\u03a5\u0308\u0342"},
                                 {0x1ff2, U"\u1ffa\u0399"},
                                 {0x1ff3, U"\u03a9\u0399"},
                                 {0x1ff4, U"\u038f\u0399"},
                                 {0x1ff6, U"\u03a9\u0342"},
                                 {0x1ff7, U"\u03a9\u0342\u0399"},
                                 {0x1ffc, U"\u03a9\u0399"},
                                 {0xfb00, U"FF"},
                                 {0xfb01, U"FI"},
                                 {0xfb02, U"FL"},
                                 {0xfb03, U"FFI"},
                                 {0xfb04, U"FFL"},
                                 {0xfb05, U"ST"},
                                 {0xfb06, U"ST"},
                                 {0xfb13, U"\u0544\u0546"},
                                 {0xfb14, U"\u0544\u0535"},
                                 {0xfb15, U"\u0544\u053b"},
                                 {0xfb16, U"\u054e\u0546"},
                                 {0xfb17, U"\u0544\u053d"}};

// The category Cf (format), which the C library calls printable.
constexpr char32_t kFormat[][2] = {{0xad, 0xad},       {0x600, 0x605},     {0x61c, 0x61c},
                                   {0x6dd, 0x6dd},     {0x70f, 0x70f},     {0x890, 0x891},
                                   {0x8e2, 0x8e2},     {0x180e, 0x180e},   {0x200b, 0x200f},
                                   {0x202a, 0x202e},   {0x2060, 0x2064},   {0x2066, 0x206f},
                                   {0xfeff, 0xfeff},   {0xfff9, 0xfffb},   {0x110bd, 0x110bd},
                                   {0x110cd, 0x110cd}, {0x13430, 0x1343f}, {0x1bca0, 0x1bca3},
                                   {0x1d173, 0x1d17a}, {0xe0001, 0xe0001}, {0xe0020, 0xe007f}};

locale_t Utf8Locale() {
  static const locale_t locale = [] {
    const locale_t made = newlocale(LC_CTYPE_MASK, "C.UTF-8", nullptr);
    CHECK(made != nullptr);  // it is built into the C library
    return made;
  }();
  return locale;
}

char32_t SimpleUpper(char32_t c) { return towupper_l(static_cast<wint_t>(c), Utf8Locale()); }
char32_t SimpleLower(char32_t c) { return towlower_l(static_cast<wint_t>(c), Utf8Locale()); }

bool IsGreekWithIota(char32_t c) { return c >= 0x1f80 && c <= 0x1faf; }

// The digraphs that have a title case of their own: three in a row, upper, title, lower.
char32_t DigraphTitle(char32_t c) {
  if (c >= 0x1c4 && c <= 0x1cc) return 0x1c5 + (c - 0x1c4) / 3 * 3;
  if (c >= 0x1f1 && c <= 0x1f3) return 0x1f2;
  return 0;
}

const Special* FindSpecial(char32_t c) {
  const auto* found =
      std::lower_bound(std::begin(kSpecials), std::end(kSpecials), c,
                       [](const Special& s, char32_t x) { return s.character < x; });
  return found != std::end(kSpecials) && found->character == c ? found : nullptr;
}

}  // namespace

bool IsSpace(char32_t c) {
  return (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
         c == 0x3000;
}

bool IsPrintable(char32_t c) {
  if (c < 0x7f) return c >= 0x20;
  if (IsSpace(c)) return false;
  if ((c >= 0xe000 && c <= 0xf8ff) || c >= 0xf0000) return false;  // private use
  for (const auto& [first, last] : kFormat) {
    if (c >= first && c <= last) return false;
  }
  return iswprint_l(static_cast<wint_t>(c), Utf8Locale()) != 0;
}

bool IsLower(char32_t c) {
  if (c < 0x80) return c >= 'a' && c <= 'z';
  return SimpleUpper(c) != c || FindSpecial(c) != nullptr;
}

bool IsUpper(char32_t c) {
  if (c < 0x80) return c >= 'A' && c <= 'Z';
  return SimpleLower(c) != c;
}

void AppendUpper(char32_t c, std::string* out) {
  if (c < 0x80) {
    *out += static_cast<char>(c >= 'a' && c <= 'z' ? c - 32 : c);
  } else if (IsGreekWithIota(c)) {  // the capital without the iota, then a capital iota
    constexpr char32_t kCapitals[] = {0x1f08, 0x1f28, 0x1f68};
    tokenizer::AppendUtf8(kCapitals[(c - 0x1f80) / 16] + c % 8, out);
    tokenizer::AppendUtf8(0x399, out);
  } else if (const Special* special = FindSpecial(c)) {
    for (char32_t upper : special->upper) tokenizer::AppendUtf8(upper, out);
  } else {
    tokenizer::AppendUtf8(SimpleUpper(c), out);
  }
}

void AppendTitle(char32_t c, std::string* out) {
  if (const char32_t title = DigraphTitle(c)) {
    tokenizer::AppendUtf8(title, out);
  } else if (c >= 0x10d0 && c <= 0x10ff) {  // Georgian has no title case
    tokenizer::AppendUtf8(c, out);
  } else if (const Special* special = FindSpecial(c); special && SimpleUpper(c) == c) {
    tokenizer::AppendUtf8(special->upper[0], out);
    for (char32_t rest : special->upper.substr(1)) AppendLower(rest, out);
  } else {
    tokenizer::AppendUtf8(SimpleUpper(c), out);
  }
}

void AppendLower(char32_t c, std::string* out) {
  if (c == 0x130) {  // I with a dot: i and a combining dot
    *out += "i\xCC\x87";
  } else {
    tokenizer::AppendUtf8(SimpleLower(c), out);
  }
}

}  // namespace sparsekv::chat
