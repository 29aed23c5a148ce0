#include "gpu_worker/timeline.h"

#include <algorithm>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace sparsekv {

void Timeline::Add(Lane lane, const char* name, uint32_t layer, Clock::time_point begin,
                   Clock::time_point end, uint64_t rows) {
  std::lock_guard lock(mutex_);
  events_.push_back({lane, name, layer, begin, end, rows});
}

void Timeline::Clear() {
  std::lock_guard lock(mutex_);
  events_.clear();
}

absl::Status Timeline::Write(const std::string& path) const {
  std::lock_guard lock(mutex_);
  Clock::time_point zero = Clock::time_point::max();
  for (const Event& event : events_) zero = std::min(zero, event.begin);
  auto microseconds = [](Clock::duration time) {
    return std::chrono::duration<double, std::micro>(time).count();
  };
  std::ofstream file(path);
  file << "{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n";
  for (const auto& [lane, name] : {std::pair{kDevice, "device"}, {kPrefetch, "prefetch"}}) {
    file << absl::StrFormat(
        R"({"ph":"M","pid":1,"tid":%d,"name":"thread_name","args":{"name":"%s"}},)"
        "\n",
        lane, name);
  }
  for (size_t i = 0; i < events_.size(); ++i) {
    const Event& event = events_[i];
    file << absl::StrFormat(
        R"({"ph":"X","pid":1,"tid":%d,"name":"%s %d","ts":%.3f,"dur":%.3f,"args":{"rows":%d}}%s)"
        "\n",
        event.lane, event.name, event.layer, microseconds(event.begin - zero),
        microseconds(event.end - event.begin), event.rows, i + 1 < events_.size() ? "," : "");
  }
  file << "]}\n";
  file.close();
  if (!file) return absl::UnavailableError(absl::StrCat(path, ": cannot be written"));
  return absl::OkStatus();
}

}  // namespace sparsekv
