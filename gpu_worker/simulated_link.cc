#include "gpu_worker/simulated_link.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"

namespace sparsekv {

SimulatedLink::Clock::time_point SimulatedLink::Send(size_t bytes) {
  const auto time = std::chrono::duration_cast<Clock::duration>(
      std::chrono::duration<double>(static_cast<double>(bytes) / bytes_per_s_));
  std::lock_guard lock(mutex_);
  free_at_ = std::max(free_at_, Clock::now()) + time;
  busy_ += time;
  return free_at_ + latency_;
}

double SimulatedLink::busy_seconds() const {
  std::lock_guard lock(mutex_);
  return std::chrono::duration<double>(busy_).count();
}

absl::StatusOr<LinkSpec> LinkSpec::Parse(const std::string& text) {
  LinkSpec link;
  if (text == "off") return link;
  const char* end = text.data() + text.size();
  const auto rate = std::from_chars(text.data(), end, link.bytes_per_s);
  bool good = rate.ec == std::errc() && rate.ptr < end && *rate.ptr == ',';
  if (good) {
    const auto latency = std::from_chars(rate.ptr + 1, end, link.latency_s);
    good = latency.ec == std::errc() && latency.ptr == end;
  }
  good = good && std::isfinite(link.bytes_per_s) && link.bytes_per_s >= 1e7 &&
         link.latency_s >= 0 && link.latency_s <= 0.01;
  if (good) return link;
  return absl::InvalidArgumentError(absl::StrCat(
      "--link: \"", text,
      "\" is not BYTES_PER_S,LATENCY_S (at least 1e7 bytes/s, at most 0.01 s), nor off"));
}

}  // namespace sparsekv
