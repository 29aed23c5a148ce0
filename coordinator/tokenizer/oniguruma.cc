#include "coordinator/tokenizer/oniguruma.h"

#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/concat.h"
#include "coordinator/tokenizer/oniguruma_class.h"

namespace sparsekv::tokenizer {
namespace {

constexpr std::string_view kGroups = ":=!><-";  // after the ? of a group
constexpr size_t kMaxGroups = 64;               // inside each other

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

bool IsLetter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

class Translator {
 public:
  explicit Translator(std::string_view pattern) : rest_(pattern) {}

  absl::StatusOr<std::string> Run() {
    while (!rest_.empty() && status_.ok()) {
      if (rest_[0] == '\\') {
        Atom(TakeOnigurumaEscape(&rest_, /*in_class=*/false));
      } else if (rest_[0] == '[') {
        Atom(TakeOnigurumaClass(&rest_));
      } else if (rest_[0] == '(') {
        Group();
      } else if (rest_[0] == ')') {
        EndGroup();
      } else if (rest_[0] == '{') {
        Interval();
      } else {
        Character();
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
    rest_.remove_prefix(count);
  }

  // One thing that a quantifier after it would repeat.
  void Atom(absl::StatusOr<std::string> translated) {
    if (!translated.ok()) {
      status_ = translated.status();
      return;
    }
    atom_ = out_.size();
    out_ += *translated;
  }

  // Quantifiers, anchors and bars among them: those are never before an interval that is legal.
  void Character() {
    constexpr std::string_view kNoAtoms = "*+?|^$";
    if (kNoAtoms.find(rest_[0]) == std::string_view::npos) {
      const bool continues = (rest_[0] & 0xC0) == 0x80;  // inside a character of several bytes
      if (!continues) atom_ = out_.size();
    }
    Copy(1);
  }

  // (?i:...), (?!...): of Ruby's flags only i and x mean the same, and (?i) without a colon reaches
  // across the alternatives that follow it.
  void Group() {
    if (groups_.size() == kMaxGroups) return Refuse("such a depth of groups");
    groups_.push_back(out_.size());
    if (rest_.starts_with("(*")) return Refuse("(*");
    if (!rest_.starts_with("(?")) return Copy(1);
    if (rest_.size() > 2 && !IsLetter(rest_[2]) &&
        kGroups.find(rest_[2]) == std::string_view::npos) {
      return Refuse(rest_.substr(0, 3));  // recursion, conditions, comments
    }
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

  void EndGroup() {
    Copy(1);
    if (groups_.empty()) return;  // PCRE2 says what is wrong
    atom_ = groups_.back();
    groups_.pop_back();
  }

  // {n,m}: a + after it, possessive in PCRE2, is a second quantifier in Ruby; so is a ? after {n}.
  void Interval() {
    size_t at = 1;
    while (at < rest_.size() && (IsDigit(rest_[at]) || rest_[at] == ',')) ++at;
    const bool closed = at < rest_.size() && rest_[at] == '}';
    if (!closed || at == 1 || rest_[1] == ',') return Refuse("a { that is no interval {n,m}");
    const char next = at + 1 < rest_.size() ? rest_[at + 1] : '\0';
    const bool lazy_range = next == '?' && rest_.substr(1, at).find(',') != std::string_view::npos;
    if ((next == '?' && !lazy_range) || next == '*') return Refuse(rest_.substr(0, at + 2));
    if (next != '+') return Copy(at + 1);
    out_.insert(atom_, "(?:");
    Copy(at + 1);
    out_ += ")+";
    rest_.remove_prefix(1);
    // A third quantifier would be read as PCRE2's again.
    if (!rest_.empty() && std::string_view("*+?{").find(rest_[0]) != std::string_view::npos) {
      Refuse("a quantifier after a quantifier after an interval");
    }
  }

  std::string_view rest_;
  std::string out_;
  size_t atom_ = 0;             // where in out_ the last atom begins
  std::vector<size_t> groups_;  // where the open ones begin
  absl::Status status_;
};

}  // namespace

absl::StatusOr<std::string> TranslateOniguruma(std::string_view pattern) {
  return Translator(pattern).Run();
}

}  // namespace sparsekv::tokenizer
