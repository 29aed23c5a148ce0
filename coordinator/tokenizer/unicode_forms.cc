#include "coordinator/tokenizer/unicode_forms.h"

#include <unicode/uchar.h>
#include <unicode/unorm2.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/concat.h"
#include "coordinator/tokenizer/utf8.h"

namespace sparsekv::tokenizer {
namespace {

constexpr uint8_t kNormalFormsVersion = 9;
constexpr uint8_t kPunctuationVersion = 8;
constexpr int kMaxDecomposition = 32;  // UTF-16 units; the longest of all is 18

bool IsAssignedBy(uint8_t version, UChar32 c) {
  UVersionInfo age;
  u_charAge(c, age);
  return age[0] != 0 && (age[0] < version || (age[0] == version && age[1] == 0));
}

bool IsAscii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return (c & 0x80) == 0; });
}

// Hands the characters of a text to `take`, and its invalid bytes to `skip`.
template <typename Take, typename Skip>
void ForEachChar(std::string_view text, const Take& take, const Skip& skip) {
  while (!text.empty()) {
    const Utf8Char next = FirstUtf8Char(text);
    if (next.kind == Utf8Char::Kind::kValid) {
      take(next.code_point);
    } else {
      skip(text.substr(0, next.length));
    }
    text.remove_prefix(next.length);
  }
}

// The standard's algorithm on one stretch of valid text: decompose, put marks in order, compose.
class Normalization {
 public:
  explicit Normalization(UnicodeForm form)
      : composes_(form == UnicodeForm::kNfc || form == UnicodeForm::kNfkc) {
    UErrorCode error = U_ZERO_ERROR;
    const bool compatible = form == UnicodeForm::kNfkc || form == UnicodeForm::kNfkd;
    // The composing instances also know the decompositions.
    tables_ = compatible ? unorm2_getNFKCInstance(&error) : unorm2_getNFCInstance(&error);
    CHECK(U_SUCCESS(error));
  }

  void Add(char32_t c) {
    const UChar32 code_point = static_cast<UChar32>(c);
    if (c < 0x80 || !IsAssignedBy(kNormalFormsVersion, code_point)) return Push(c, 0);
    UChar parts[kMaxDecomposition];
    UErrorCode error = U_ZERO_ERROR;
    const int length =
        unorm2_getDecomposition(tables_, code_point, parts, kMaxDecomposition, &error);
    CHECK(U_SUCCESS(error));
    if (length < 0) return Push(c, unorm2_getCombiningClass(tables_, code_point));
    for (int i = 0; i < length;) {
      UChar32 part;
      U16_NEXT(parts, i, length, part);
      Push(static_cast<char32_t>(part), unorm2_getCombiningClass(tables_, part));
    }
  }

  // Appends the stretch in its normal form, and begins a new one.
  void Finish(std::string* out) {
    SortMarks();
    if (composes_) Compose();
    for (const Char& c : chars_) AppendUtf8(c.code_point, out);
    chars_.clear();
    sorted_ = 0;
  }

 private:
  struct Char {
    char32_t code_point;
    uint8_t combining_class;
  };

  void Push(char32_t c, uint8_t combining_class) {
    if (combining_class == 0) SortMarks();
    chars_.push_back({c, combining_class});
    if (combining_class == 0) sorted_ = chars_.size();
  }

  void SortMarks() {
    std::stable_sort(
        chars_.begin() + static_cast<std::ptrdiff_t>(sorted_), chars_.end(),
        [](const Char& a, const Char& b) { return a.combining_class < b.combining_class; });
  }

  char32_t Pair(char32_t first, char32_t second) const {
    if (second < 0x80) return 0;
    const UChar32 pair =
        unorm2_composePair(tables_, static_cast<UChar32>(first), static_cast<UChar32>(second));
    const bool known = pair >= 0 && IsAssignedBy(kNormalFormsVersion, pair);
    return known ? static_cast<char32_t>(pair) : 0;
  }

  // A character joins the last starter unless one between them has its class or a higher one.
  void Compose() {
    size_t kept = 0;
    size_t starter = SIZE_MAX;
    uint8_t last_class = 0;
    for (const Char c : std::vector<Char>(std::move(chars_))) {
      const bool beside = starter != SIZE_MAX && starter + 1 == kept;
      if (starter != SIZE_MAX && (beside || last_class < c.combining_class)) {
        if (const char32_t pair = Pair(chars_[starter].code_point, c.code_point)) {
          chars_[starter].code_point = pair;
          continue;
        }
      }
      if (c.combining_class == 0) starter = kept;
      last_class = c.combining_class;
      chars_.push_back(c);
      ++kept;
    }
  }

  const UNormalizer2* tables_ = nullptr;
  const bool composes_;
  std::vector<Char> chars_;
  size_t sorted_ = 0;  // before it, marks are in order
};

}  // namespace

std::string NormalForm(UnicodeForm form, std::string_view text) {
  std::string out;
  if (IsAscii(text)) return std::string(text);
  out.reserve(text.size());
  Normalization stretch(form);
  ForEachChar(
      text, [&](char32_t c) { stretch.Add(c); },
      [&](std::string_view invalid) {
        stretch.Finish(&out);
        out += invalid;
      });
  stretch.Finish(&out);
  return out;
}

std::string StripAccents(std::string_view text) {
  std::string out;
  ForEachChar(
      text,
      [&](char32_t c) {
        const UChar32 code_point = static_cast<UChar32>(c);
        // Two marks of Unicode 9.0 became letters later.
        const bool is_mark =
            (U_GET_GC_MASK(code_point) & U_GC_M_MASK) != 0 || c == 0x1CF2 || c == 0x1CF3;
        if (!is_mark || !IsAssignedBy(kNormalFormsVersion, code_point)) AppendUtf8(c, &out);
      },
      [&](std::string_view invalid) { out += invalid; });
  return out;
}

std::string Lowercase(std::string_view text) {
  std::string out;
  ForEachChar(
      text,
      [&](char32_t c) {
        // The one character whose small form is two, whatever the language.
        if (c == 0x130) {
          out += "i\u0307";
        } else {
          AppendUtf8(static_cast<char32_t>(u_tolower(static_cast<UChar32>(c))), &out);
        }
      },
      [&](std::string_view invalid) { out += invalid; });
  return out;
}

std::string_view StripWhiteSpace(std::string_view text, bool left, bool right) {
  while (left && !text.empty()) {
    const Utf8Char first = FirstUtf8Char(text);
    if (!IsWhiteSpace(first.code_point)) break;
    text.remove_prefix(first.length);
  }
  while (right && !text.empty()) {
    const Utf8Char last = LastUtf8Char(text);
    if (!IsWhiteSpace(last.code_point)) break;
    text.remove_suffix(last.length);
  }
  return text;
}

std::string PunctuationClass() {
  const auto is_member = [](UChar32 c) {
    if (c < 0x80) return u_ispunct(c) || (U_GET_GC_MASK(c) & U_GC_S_MASK) != 0;
    const bool was_punctuation = c == 0x166D || c == 0x111C9;  // in Unicode 8.0, not today
    return ((U_GET_GC_MASK(c) & U_GC_P_MASK) != 0 || was_punctuation) &&
           IsAssignedBy(kPunctuationVersion, c);
  };
  std::string members;
  for (UChar32 c = 0; c <= UCHAR_MAX_VALUE;) {
    if (!is_member(c)) {
      ++c;
      continue;
    }
    const UChar32 begin = c;
    while (c <= UCHAR_MAX_VALUE && is_member(c)) ++c;
    members += Concat("\\x{", std::hex, begin, "}-\\x{", c - 1, "}");
  }
  return Concat("[", members, "]");
}

}  // namespace sparsekv::tokenizer
