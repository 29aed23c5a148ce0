#include "coordinator/chat/lexer.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "base/concat.h"
#include "coordinator/chat/error.h"
#include "coordinator/chat/string_literal.h"
#include "coordinator/chat/text.h"
#include "coordinator/chat/unicode.h"

namespace sparsekv::chat {

namespace {

std::string NormalizeLines(std::string_view source) {
  std::string text;
  text.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      text += source[i];
    } else {
      text += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    }
  }
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

bool IsNameStart(char c) { return absl::ascii_isalpha(static_cast<unsigned char>(c)) || c == '_'; }
bool IsNameCharacter(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_';
}
bool IsDigit(char c) { return absl::ascii_isdigit(static_cast<unsigned char>(c)); }

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(NormalizeLines(source)) {}

  std::vector<Token> Run() {
    while (position_ < source_.size()) Root();
    Push(Token::Type::kEnd);
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void Fail(std::string message) const {
    throw TemplateError{ErrorKind::kSyntax, std::move(message), line_};
  }
  std::string_view Rest() const { return std::string_view(source_).substr(position_); }
  char Peek(size_t ahead = 0) const {
    return position_ + ahead < source_.size() ? source_[position_ + ahead] : '\0';
  }

  void Push(Token::Type type, std::string text = {}, Value number = {}) {
    tokens_.push_back({type, line_, std::move(text), number});
  }

  // All moves go through here, so that lines are counted.
  void Advance(size_t bytes) {
    for (const size_t end = position_ + bytes; position_ < end; ++position_) {
      if (source_[position_] == '\n') ++line_;
    }
  }
  void SkipSpace() { Advance(Rest().size() - StripLeft(Rest(), std::nullopt).size()); }

  // Text up to the next tag, without what the tag strips from it.
  void PushText(std::string_view text, char sign, bool strip_line) {
    if (sign == '-') {
      text = StripRight(text, std::nullopt);
    } else if (sign != '+' && strip_line) {
      const size_t line_begin = text.rfind('\n') + 1;  // npos + 1 = 0
      const bool from_line_start = line_begin > 0 || line_starting_;
      if (from_line_start && StripLeft(text.substr(line_begin), std::nullopt).empty()) {
        text = text.substr(0, line_begin);
      }
    }
    if (!text.empty()) Push(Token::Type::kText, std::string(text));
  }

  // The length of {% raw %} at the position, 0 when it is another tag.
  size_t RawLength() const {
    std::string_view rest = Rest().substr(2);
    if (rest.starts_with('-') || rest.starts_with('+')) rest.remove_prefix(1);
    rest = StripLeft(rest, std::nullopt);
    if (!rest.starts_with("raw")) return 0;
    rest = StripLeft(rest.substr(3), std::nullopt);
    if (rest.starts_with("%}")) return Rest().size() - rest.size() + 2;
    if (!rest.starts_with("-%}")) return 0;
    return Rest().size() - StripLeft(rest.substr(3), std::nullopt).size();
  }

  void Root() {
    const std::string_view rest = Rest();
    size_t at = rest.find('{');
    while (at != std::string_view::npos &&
           (at + 1 == rest.size() || std::string_view("{%#").find(rest[at + 1]) == rest.npos)) {
      at = rest.find('{', at + 1);
    }
    if (at == std::string_view::npos) {
      Push(Token::Type::kText, std::string(rest));
      return Advance(rest.size());
    }
    const char what = rest[at + 1];
    const char mark = at + 2 < rest.size() ? rest[at + 2] : '\0';
    const char sign = mark == '-' || mark == '+' ? mark : '\0';
    PushText(rest.substr(0, at), sign, what != '{');
    Advance(at);
    if (what == '#') return Comment(sign);
    if (const size_t raw = what == '%' ? RawLength() : 0) return Raw(raw);
    Push(what == '{' ? Token::Type::kPrintBegin : Token::Type::kTagBegin);
    Advance(sign ? 3 : 2);
    if (what == '{') {
      while (!PrintEnd()) Word("end of print statement");
    } else {
      while (!TagEnd()) Word("end of statement block");
    }
  }

  void Comment(char sign) {
    const size_t begin = position_ + (sign ? 3 : 2);
    const size_t close = source_.find("#}", begin);
    if (close == std::string::npos) Fail("the comment has no end");
    const char mark = close > begin ? source_[close - 1] : '\0';
    Advance(close + 2 - position_);
    if (mark == '-') {
      SkipSpace();
    } else if (mark != '+' && Peek() == '\n') {
      Advance(1);
    }
    line_starting_ = source_[position_ - 1] == '\n';
  }

  void Raw(size_t open) {
    Advance(open);
    line_starting_ = source_[position_ - 1] == '\n';
    const std::string_view rest = Rest();
    for (size_t at = rest.find("{%"); at != rest.npos; at = rest.find("{%", at + 1)) {
      std::string_view tag = rest.substr(at + 2);
      const char sign = tag.starts_with('-') || tag.starts_with('+') ? tag[0] : '\0';
      if (sign) tag.remove_prefix(1);
      tag = StripLeft(tag, std::nullopt);
      if (!tag.starts_with("endraw")) continue;
      tag = StripLeft(tag.substr(6), std::nullopt);
      if (!tag.starts_with("%}") && !tag.starts_with("-%}") && !tag.starts_with("+%}")) continue;
      PushText(rest.substr(0, at), sign, true);
      Advance(rest.size() - tag.size());
      TagEndHere();
      return;
    }
    Fail("the raw block has no end");
  }

  // %}, -%} or +%} at the position, with what it strips.
  bool TagEndHere() {
    const std::string_view rest = Rest();
    if (rest.starts_with("-%}")) {
      Advance(3);
      SkipSpace();
    } else if (rest.starts_with("+%}")) {
      Advance(3);
    } else if (rest.starts_with("%}")) {
      Advance(rest.size() > 2 && rest[2] == '\n' ? 3 : 2);
    } else {
      return false;
    }
    line_starting_ = source_[position_ - 1] == '\n';
    return true;
  }

  bool TagEnd() {
    if (!brackets_.empty()) return false;
    const int line = line_;
    if (!TagEndHere()) return false;
    tokens_.push_back({Token::Type::kTagEnd, line, {}, {}});
    return true;
  }

  bool PrintEnd() {
    if (!brackets_.empty()) return false;
    const std::string_view rest = Rest();
    const bool strip = rest.starts_with("-}}");
    if (!strip && !rest.starts_with("}}")) return false;
    Push(Token::Type::kPrintEnd);
    Advance(strip ? 3 : 2);
    if (strip) SkipSpace();
    line_starting_ = source_[position_ - 1] == '\n';
    return true;
  }

  // One word of a tag, or the space before it.
  void Word(const char* expected) {
    if (position_ >= source_.size()) Fail(Concat("the template ends before the ", expected));
    const char c = Peek();
    if (IsSpace(CharacterAt(source_, position_))) return SkipSpace();
    if (IsDigit(c)) return Number();
    if (IsNameStart(c)) {
      size_t length = 1;
      while (IsNameCharacter(Peek(length))) ++length;
      Push(Token::Type::kName, std::string(Rest().substr(0, length)));
      return Advance(length);
    }
    if (c == '\'' || c == '"') return String(c);
    Operator();
  }

  // Digits, possibly with _ between them.
  size_t DigitsAt(size_t ahead) const {
    size_t length = 0;
    while (IsDigit(Peek(ahead + length)) ||
           (length > 0 && Peek(ahead + length) == '_' && IsDigit(Peek(ahead + length + 1)))) {
      ++length;
    }
    return length;
  }

  void Number() {
    size_t length = DigitsAt(0);
    bool floating = false;
    const bool after_dot = position_ > 0 && source_[position_ - 1] == '.';
    if (!after_dot) {
      if (Peek(length) == '.' && DigitsAt(length + 1) > 0) {
        length += 1 + DigitsAt(length + 1);
        floating = true;
      }
      const char sign = Peek(length + 1);
      const size_t exponent = length + (sign == '+' || sign == '-' ? 2 : 1);
      if ((Peek(length) == 'e' || Peek(length) == 'E') && DigitsAt(exponent) > 0) {
        length = exponent + DigitsAt(exponent);
        floating = true;
      }
    }
    std::string digits(Rest().substr(0, length));
    std::erase(digits, '_');
    const char* const end = digits.data() + digits.size();
    if (floating) {
      // Out of range: an infinity or zero, as there.
      Push(Token::Type::kFloat, {}, Value::Float(std::strtod(digits.c_str(), nullptr)));
    } else {
      if (IsNameStart(Peek(length)) || (digits.size() > 1 && digits[0] == '0')) {
        Fail(Concat("the number ", Rest().substr(0, length + 1), " is not decimal"));
      }
      int64_t value = 0;
      if (std::from_chars(digits.data(), end, value).ec != std::errc()) {
        Fail(Concat("the number ", digits.substr(0, 40), " leaves 64 bits"));
      }
      Push(Token::Type::kInteger, {}, Value::Int(value));
    }
    Advance(length);
  }

  void String(char quote) {
    size_t end = position_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) Fail("a string has no end");
    const std::string_view inner =
        std::string_view(source_).substr(position_ + 1, end - position_ - 1);
    std::optional<std::string> text = Unescape(inner);
    if (!text) Fail("a string has an escape that is not supported");
    Push(Token::Type::kString, *std::move(text));
    Advance(end + 1 - position_);
  }

  void Operator() {
    const std::string_view rest = Rest();
    for (const std::string_view two : {"//", "**", "==", "!=", ">=", "<="}) {
      if (rest.starts_with(two)) {
        Push(Token::Type::kOperator, std::string(two));
        return Advance(2);
      }
    }
    const char c = rest[0];
    if (std::string_view("+-/*%~[](){}<>=.:|,;").find(c) == std::string_view::npos) {
      Fail(Concat("unexpected character '", rest.substr(0, CharacterLength(c)), "'"));
    }
    if (c == '(' || c == '[' || c == '{') {
      brackets_ += c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (c == ')' || c == ']' || c == '}') {
      if (brackets_.empty() || brackets_.back() != c) {
        Fail(Concat("unexpected '", std::string(1, c), "'"));
      }
      brackets_.pop_back();
    }
    Push(Token::Type::kOperator, std::string(1, c));
    Advance(1);
  }

  const std::string source_;
  size_t position_ = 0;
  int line_ = 1;
  bool line_starting_ = true;  // the last tag ended with a line end
  std::string brackets_;       // the closing ones that are waited for
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> Tokenize(std::string_view source) { return Lexer(source).Run(); }

}  // namespace sparsekv::chat
