#include "coordinator/chat/numbers.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "coordinator/chat/runtime.h"
#include "coordinator/chat/text.h"

namespace sparsekv::chat {

namespace {

// The text as from_chars wants it: stripped, single _ between digits gone, no plus sign.
std::optional<std::string> Plain(std::string_view text) {
  text = StripRight(StripLeft(text, std::nullopt), std::nullopt);
  if (text.starts_with('+')) {
    text.remove_prefix(1);
    if (text.starts_with('-')) return std::nullopt;
  }
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      plain += text[i];
      continue;
    }
    const bool between = i > 0 && i + 1 < text.size() &&
                         absl::ascii_isdigit(static_cast<unsigned char>(text[i - 1])) &&
                         absl::ascii_isdigit(static_cast<unsigned char>(text[i + 1]));
    if (!between) return std::nullopt;
  }
  if (plain.empty()) return std::nullopt;
  return plain;
}

}  // namespace

std::optional<int64_t> ParseInteger(std::string_view text) {
  const auto plain = Plain(text);
  if (!plain) return std::nullopt;
  const char* const end = plain->data() + plain->size();
  int64_t value = 0;
  const auto [stop, error] = std::from_chars(plain->data(), end, value);
  if (stop != end) return std::nullopt;
  if (error == std::errc::result_out_of_range) ThrowRuntime("an integer leaves 64 bits");
  if (error != std::errc()) return std::nullopt;
  return value;
}

std::optional<double> ParseFloat(std::string_view text) {
  auto plain = Plain(text);
  if (!plain) return std::nullopt;
  const std::string lower = absl::AsciiStrToLower(*plain);
  const bool negative = lower.starts_with('-');
  const std::string_view name = std::string_view(lower).substr(negative ? 1 : 0);
  if (name == "inf" || name == "infinity") return negative ? -HUGE_VAL : HUGE_VAL;
  if (name == "nan") return std::nan("");
  if (lower.find_first_not_of("0123456789.e+-") != std::string::npos) return std::nullopt;
  char* stop = nullptr;
  const double value = std::strtod(plain->c_str(), &stop);  // out of range: an infinity, as there
  if (stop != plain->data() + plain->size()) return std::nullopt;
  return value;
}

double Round(double value, int64_t digits) {
  if (!std::isfinite(value) || digits > 300) return value;
  if (digits >= 0) {
    char text[700];
    std::snprintf(text, sizeof text, "%.*f", static_cast<int>(digits), value);
    return std::strtod(text, nullptr);
  }
  if (digits < -308) return std::copysign(0.0, value);
  const double unit = std::pow(10.0, static_cast<double>(-digits));
  return std::nearbyint(value / unit) * unit;
}

}  // namespace sparsekv::chat
