#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace sparsekv {

// What happened when, on which thread, as Chrome's and Perfetto's viewers show it (the JSON of
// trace events, complete events). Thread-safe; names are literals.
class Timeline {
 public:
  using Clock = std::chrono::steady_clock;
  enum Lane : uint32_t { kDevice = 1, kPrefetch = 2 };  // shown as threads

  void Add(Lane lane, const char* name, uint32_t layer, Clock::time_point begin,
           Clock::time_point end, uint64_t rows = 0);
  void Clear();
  absl::Status Write(const std::string& path) const;

  // An event that lasts as long as this object; nothing where `timeline` is null.
  class Span {
   public:
    Span(Timeline* timeline, const char* name, uint32_t layer)
        : timeline_(timeline), name_(name), layer_(layer), begin_(Clock::now()) {}
    ~Span() {
      if (timeline_) timeline_->Add(kDevice, name_, layer_, begin_, Clock::now(), rows_);
    }
    void set_rows(uint64_t rows) { rows_ = rows; }

   private:
    Timeline* const timeline_;
    const char* const name_;
    const uint32_t layer_;
    const Clock::time_point begin_;
    uint64_t rows_ = 0;
  };

 private:
  struct Event {
    Lane lane;
    const char* name;
    uint32_t layer;
    Clock::time_point begin, end;
    uint64_t rows;
  };
  mutable std::mutex mutex_;
  std::vector<Event> events_;
};

}  // namespace sparsekv
