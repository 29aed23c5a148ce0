#pragma once

#include <chrono>
#include <cstddef>
#include <mutex>

#include "absl/status/statusor.h"

namespace sparsekv {

// What the cpu backend has in place of the bus between host and device: transfers follow each other
// at `bytes_per_s`, and each arrives `latency` after its last byte. Thread-safe.
class SimulatedLink {
 public:
  using Clock = std::chrono::steady_clock;

  SimulatedLink(double bytes_per_s, Clock::duration latency)
      : bytes_per_s_(bytes_per_s), latency_(latency) {}

  // Puts a transfer at the end of the queue; when it will have arrived.
  Clock::time_point Send(size_t bytes);
  double busy_seconds() const;

 private:
  const double bytes_per_s_;
  const Clock::duration latency_;
  mutable std::mutex mutex_;
  Clock::time_point free_at_{};
  Clock::duration busy_{};
};

// How a link is named on a command line: "BYTES_PER_S,LATENCY_S", e.g. "4e9,20e-6"; "off" = none.
struct LinkSpec {
  double bytes_per_s = 0;  // 0 = no link: transfers take what a copy takes
  double latency_s = 0;

  static absl::StatusOr<LinkSpec> Parse(const std::string& text);
};

}  // namespace sparsekv
