#include "cli/eval/tasks/haystack.h"

#include <algorithm>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"

namespace sparsekv {

namespace {

constexpr const char* kIdle[] = {
    "Rain fell on the hill all day.",       "The road goes up and the road goes down.",
    "A cart stood beside the barn.",        "Nobody was at the well that morning.",
    "The wind turned and came back again.",
};

}  // namespace

absl::StatusOr<Haystack> Haystack::Make(const TaskSettings& settings) {
  Haystack hay;
  if (settings.text_file.empty()) {
    for (const char* line : kIdle) hay.lines_.push_back(absl::StrCat(line, "\n"));
    return hay;
  }
  auto text = ReadInput(settings.text_file);
  if (!text.ok()) return text.status();
  std::istringstream in(*text);
  for (std::string line; std::getline(in, line);) {
    if (line.find_first_not_of(" \t\r") != std::string::npos) hay.lines_.push_back(line + "\n");
  }
  if (hay.lines_.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--text: ", settings.text_file, " has no lines"));
  }
  return hay;
}

std::string Haystack::With(std::vector<Needle> needles, uint32_t size, uint64_t start) const {
  std::ranges::stable_sort(needles, {}, &Needle::depth);
  std::string text;
  size_t next = 0;
  for (uint32_t i = 0; i <= size; ++i) {
    for (; next < needles.size() && needles[next].depth * size <= i; ++next) {
      text += needles[next].line;
    }
    if (i < size) text += lines_[(start + i) % lines_.size()];
  }
  for (; next < needles.size(); ++next) text += needles[next].line;
  return text;
}

}  // namespace sparsekv
