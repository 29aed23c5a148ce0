#include "coordinator/tokenizer/oniguruma.h"

#include <algorithm>
#include <utility>

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
constexpr size_t kLongestCategoryName = 2;  // "L", "Lu"

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

bool IsLetter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

class Translator {
 public:
  explicit Translator(std::string_view pattern) : rest_(pattern) {}

  absl::StatusOr<std::string> Run() {
    while (!rest_.empty() && status_.ok()) {
      if (rest_[0] == '\\') {
        Escape();
      } else if (in_class_) {
        InClass();
      } else {
        Outside();
      }
    }
    if (!status_.ok()) return status_;
    return std::move(out_);
  }

 private:
  void Refuse(std::string_view what) {
    if (status_.ok()) status_ = absl::UnimplementedError(Concat(what, " is not supported"));
  }

  void Copy(size_t count) {
    out_.append(rest_.substr(0, count));
    rest_.remove_prefix(std::min(count, rest_.size()));
  }

  void Replace(size_t count, std::string_view with) {
    out_.append(with);
    rest_.remove_prefix(count);
  }

  void Escape() {
    if (rest_.size() < 2) return Refuse("a backslash at the end");
    const char name = rest_[1];
    if (name == 's') return Replace(2, "\\p{White_Space}");
    if (name == 'S') return Replace(2, "\\P{White_Space}");
    if (name == 'w') {
      return Replace(2, in_class_ ? std::string(kWordMembers) : Concat("[", kWordMembers, "]"));
    }
    if (name == 'W' && !in_class_) return Replace(2, Concat("[^", kWordMembers, "]"));
    if (name == 'W' || kRefusedEscapes.find(name) != std::string_view::npos || IsDigit(name)) {
      return Refuse(Concat(rest_.substr(0, 2), in_class_ ? " in a character class" : ""));
    }
    if ((name == 'p' || name == 'P') && rest_.size() > 2 && rest_[2] == '{') return Property();
    Copy(2);
  }

  // \p{Han}, \p{^Lu}
  void Property() {
    const size_t end = rest_.find('}');
    if (end == std::string_view::npos) return Refuse("a property without }");
    const size_t name_begin = rest_[3] == '^' ? 4 : 3;
    const std::string name(rest_.substr(name_begin, end - name_begin));
    if (name.size() > kLongestCategoryName) {
      const std::string script = Concat("sc:", name, "}");
      if (Regex::Compile("\\p{" + script).ok()) {
        return Replace(end + 1, Concat(rest_.substr(0, name_begin), script));
      }
    }
    Copy(end + 1);
  }

  void InClass() {
    if (rest_[0] == '[') return Refuse("a character class in a character class");
    if (rest_.starts_with("&&")) return Refuse("an intersection of character classes");
    in_class_ = rest_[0] != ']';
    Copy(1);
  }

  void Outside() {
    if (rest_[0] == '[') {
      in_class_ = true;
      Copy(rest_.starts_with("[^") ? 2 : 1);
      if (rest_.starts_with("]")) Refuse("an empty character class");
    } else if (rest_.starts_with("(?")) {
      Group();
    } else if (rest_[0] == '{') {
      Interval();
    } else {
      Copy(1);
    }
  }

  // (?i:...), (?!...): of Ruby's flags only i and x mean the same, and (?i) without a colon reaches
  // across the alternatives that follow it.
  void Group() {
    size_t at = 2;
    while (at < rest_.size() && (IsLetter(rest_[at]) || rest_[at] == '-')) ++at;
    const std::string_view flags = rest_.substr(2, at - 2);
    const bool whole_group = rest_.substr(at).starts_with(":");
    if (!flags.empty() &&
        (!whole_group || flags.find_first_not_of("ix-") != std::string_view::npos)) {
      return Refuse(Concat("(?", flags));
    }
    Copy(at);
  }

  // {n,m}: a ? or + after it is possessive or lazy in PCRE2 and a second quantifier in Ruby.
  void Interval() {
    size_t at = 1;
    while (at < rest_.size() && (IsDigit(rest_[at]) || rest_[at] == ',')) ++at;
    const bool closed = at < rest_.size() && rest_[at] == '}';
    if (!closed || at == 1 || rest_[1] == ',') return Refuse("a { that is no interval {n,m}");
    const char next = at + 1 < rest_.size() ? rest_[at + 1] : '\0';
    const bool lazy_range = next == '?' && rest_.substr(1, at).find(',') != std::string_view::npos;
    if ((next == '?' && !lazy_range) || next == '+' || next == '*') {
      return Refuse(Concat(rest_.substr(0, at + 2)));
    }
    Copy(at + 1);
  }

  std::string_view rest_;
  std::string out_;
  bool in_class_ = false;
  absl::Status status_;
};

}  // namespace

absl::StatusOr<std::string> TranslateOniguruma(std::string_view pattern) {
  return Translator(pattern).Run();
}

}  // namespace sparsekv::tokenizer
