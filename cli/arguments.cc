#include <charconv>
#include <fstream>
#include <iostream>
#include <sstream>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "cli/commands.h"

namespace sparsekv {

namespace {

bool ParseNumber(std::string_view text, uint32_t* value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

}  // namespace

absl::StatusOr<std::vector<uint32_t>> ParseTokenIds(const std::string& text) {
  std::vector<uint32_t> ids;
  std::istringstream parts(text + ',');
  for (std::string part; std::getline(parts, part, ',');) {
    uint32_t id = 0;
    if (!ParseNumber(part, &id)) {
      return absl::InvalidArgumentError(absl::StrCat("--token-ids: \"", part, "\" is not an id"));
    }
    ids.push_back(id);
  }
  return ids;
}

absl::StatusOr<std::vector<uint32_t>> ReadTokenIds(const std::string& path) {
  auto text = ReadInput(path);
  if (!text.ok()) return text.status();
  while (!text->empty() && std::isspace(static_cast<unsigned char>(text->back()))) {
    text->pop_back();
  }
  return ParseTokenIds(*text);
}

absl::Status ParseBudget(const std::string& text, uint32_t* rows, uint32_t* denominator) {
  std::string_view number = text;
  uint32_t* value = rows;
  if (text.starts_with("1/")) {
    number.remove_prefix(2);
    value = denominator;
  }
  *rows = *denominator = 0;
  if (!ParseNumber(number, value) || *value == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--budget: \"", text, "\" is neither a count of rows nor 1/N"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadInput(const std::string& path) {
  std::ostringstream text;
  if (path == "-") {
    text << std::cin.rdbuf();
    return text.str();
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  text << file.rdbuf();
  return text.str();
}

}  // namespace sparsekv
