#include "coordinator/tokenizer/oniguruma_class.h"

#include <array>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/concat.h"
#include "coordinator/tokenizer/regex.h"

namespace sparsekv::tokenizer {
namespace {

// Latin-1's superscripts and fractions are word characters for Oniguruma; those elsewhere are not.
constexpr std::string_view kWordMembers =
    "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}";
// \b \B: another notion of a word; \h \H \v: hexadecimal digits and one vertical tab there, kinds
// of blanks here; \K \G: move the match; \k \g: references; \Q \E \N \o: plain letters there.
constexpr std::string_view kRefusedEscapes = "bBhHvKGkgQENoXC";
constexpr std::string_view kHexDigits = "0123456789abcdefABCDEF";
constexpr std::string_view kAny = "[\\x{0}-\\x{10ffff}]";
constexpr int kMaxClassDepth = 8;

// What PCRE2 calls L, Lu, ... Oniguruma also knows by its long name.
constexpr std::array<std::pair<std::string_view, std::string_view>, 16> kLongCategories = {{
    {"Letter", "L"},
    {"Lowercase_Letter", "Ll"},
    {"Uppercase_Letter", "Lu"},
    {"Titlecase_Letter", "Lt"},
    {"Modifier_Letter", "Lm"},
    {"Other_Letter", "Lo"},
    {"Mark", "M"},
    {"Nonspacing_Mark", "Mn"},
    {"Spacing_Mark", "Mc"},
    {"Number", "N"},
    {"Decimal_Number", "Nd"},
    {"Punctuation", "P"},
    {"Symbol", "S"},
    {"Separator", "Z"},
    {"Space_Separator", "Zs"},
    {"Control", "Cc"},
}};

absl::Status Refuse(std::string_view what) {
  return absl::UnimplementedError(Concat(what, " is not supported"));
}

// What of a class has been read: members, as they stand between brackets, and classes inside it.
struct Operand {
  std::string members;
  std::vector<std::string> nested;

  std::string Expression() const {
    std::vector<std::string> alternatives = nested;
    if (!members.empty()) alternatives.insert(alternatives.begin(), Concat("[", members, "]"));
    if (alternatives.size() == 1) return alternatives[0];
    std::string all = "(?:";
    for (const std::string& alternative : alternatives) {
      all += Concat(all.size() > 3 ? "|" : "", alternative);
    }
    return all + ")";
  }
  bool IsEmpty() const { return members.empty() && nested.empty(); }
};

// The operands of an intersection, the last one still growing.
struct Class {
  std::vector<Operand> operands = {{}};
  bool negated = false;

  bool IsPlain() const { return operands.size() == 1 && operands[0].nested.empty(); }

  std::string Expression() const {
    if (IsPlain()) return Concat(negated ? "[^" : "[", operands[0].members, "]");
    std::string all;
    for (size_t i = 0; i + 1 < operands.size(); ++i) {
      all += Concat("(?=", operands[i].Expression(), ")");
    }
    all += operands.back().Expression();
    return negated ? Concat("(?:(?!", all, ")", kAny, ")") : Concat("(?:", all, ")");
  }
};

absl::StatusOr<std::string> TakeProperty(std::string_view* rest) {
  const size_t end = rest->find('}');
  if (end == std::string_view::npos || end < 4) return Refuse("a property without a name");
  const size_t name_begin = (*rest)[3] == '^' ? 4 : 3;
  const std::string_view head = rest->substr(0, name_begin);
  std::string name(rest->substr(name_begin, end - name_begin));
  rest->remove_prefix(end + 1);
  for (const auto& [known, category] : kLongCategories) {
    if (name == known) name = category;
  }
  constexpr size_t kLongestCategory = 2;  // "L", "Lu"
  // PCRE2 takes a script's bare name for its extensions.
  const std::string script = Concat("sc:", name);
  if (name.size() > kLongestCategory && Regex::Compile(Concat("\\p{", script, "}")).ok()) {
    name = script;
  }
  return Concat(head, name, "}");
}

}  // namespace

absl::StatusOr<std::string> TakeOnigurumaEscape(std::string_view* rest, bool in_class) {
  if (rest->size() < 2) return Refuse("a backslash at the end");
  const char name = (*rest)[1];
  if ((name == 'p' || name == 'P') && rest->size() > 2 && (*rest)[2] == '{') {
    return TakeProperty(rest);
  }
  if (name == 'u') {
    const std::string_view digits = rest->substr(2, 4);
    if (digits.size() < 4 || digits.find_first_not_of(kHexDigits) != std::string_view::npos) {
      return Refuse("\\u without four digits");
    }
    rest->remove_prefix(6);
    return Concat("\\x{", digits, "}");
  }
  const std::string_view escape = rest->substr(0, 2);
  rest->remove_prefix(2);
  if (name == 's') return "\\p{White_Space}";
  if (name == 'S') return "\\P{White_Space}";
  if (name == 'w') return in_class ? std::string(kWordMembers) : Concat("[", kWordMembers, "]");
  if (name == 'W' && !in_class) return Concat("[^", kWordMembers, "]");
  const bool is_digit = name >= '0' && name <= '9';
  if (name == 'W' || is_digit || kRefusedEscapes.find(name) != std::string_view::npos) {
    return Refuse(Concat(escape, in_class ? " in a character class" : ""));
  }
  return std::string(escape);
}

absl::StatusOr<std::string> TakeOnigurumaClass(std::string_view* rest) {
  std::vector<Class> open;
  const auto begin = [&] {
    open.emplace_back();
    open.back().negated = rest->starts_with("[^");
    rest->remove_prefix(open.back().negated ? 2 : 1);
    return !rest->starts_with("]");
  };
  if (!begin()) return Refuse("an empty character class");
  while (!rest->empty()) {
    std::vector<Operand>& operands = open.back().operands;
    if (rest->starts_with("[:")) return Refuse("a class by name, [:...:],");
    if (rest->starts_with("[")) {
      if (operands.back().members.ends_with('-')) return Refuse("a range that ends in a class");
      if (open.size() == kMaxClassDepth) return Refuse("such a depth of character classes");
      if (!begin()) return Refuse("an empty character class");
    } else if (rest->starts_with("&&")) {
      rest->remove_prefix(2);
      if (operands.back().IsEmpty()) return Refuse("an empty side of &&");
      if (rest->starts_with("^")) return Refuse("&&^");
      operands.emplace_back();
    } else if (rest->starts_with("]")) {
      rest->remove_prefix(1);
      if (operands.back().IsEmpty()) return Refuse("an empty side of &&");
      const Class done = std::move(open.back());
      open.pop_back();
      if (open.empty()) return done.Expression();
      Operand& outer = open.back().operands.back();
      if (done.IsPlain() && !done.negated) {
        outer.members += done.operands[0].members;
      } else {
        outer.nested.push_back(done.Expression());
      }
    } else if (rest->starts_with("\\")) {
      absl::StatusOr<std::string> escape = TakeOnigurumaEscape(rest, /*in_class=*/true);
      if (!escape.ok()) return escape.status();
      operands.back().members += *escape;
    } else {
      operands.back().members += (*rest)[0];
      rest->remove_prefix(1);
    }
  }
  return absl::UnimplementedError("a character class without ] is not supported");
}

}  // namespace sparsekv::tokenizer
