#include "coordinator/stop_strings.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace sparsekv {

namespace {

// The longest end of `text` that is a beginning of `stop`, but not all of it.
size_t OverlapWithStart(std::string_view text, std::string_view stop) {
  for (size_t length = std::min(text.size(), stop.size() - 1); length > 0; --length) {
    if (text.ends_with(stop.substr(0, length))) return length;
  }
  return 0;
}

}  // namespace

StopStrings::StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& stop : stops_) CHECK(!stop.empty());
}

std::string StopStrings::Push(std::string_view piece) {
  if (matched_) return "";
  if (stops_.empty()) return std::string(piece);
  held_ += piece;
  size_t cut = 0;
  size_t first_end = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t begin = held_.find(stop);
    if (begin == std::string::npos) continue;
    const size_t end = begin + stop.size();
    if (end > first_end || (end == first_end && begin >= cut)) continue;
    first_end = end;
    cut = begin;
    match_ = stop;
  }
  if (first_end != std::string::npos) {
    matched_ = true;
    std::string out = held_.substr(0, cut);
    held_.clear();
    return out;
  }
  size_t keep = 0;
  for (const std::string& stop : stops_) keep = std::max(keep, OverlapWithStart(held_, stop));
  std::string out = held_.substr(0, held_.size() - keep);
  held_.erase(0, out.size());
  return out;
}

std::string StopStrings::Finish() { return std::exchange(held_, ""); }

}  // namespace sparsekv
