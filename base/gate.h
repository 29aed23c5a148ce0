#pragma once

#include <condition_variable>
#include <cstddef>
#include <mutex>

#include "base/check.h"

namespace sparsekv {

// Counts what is under way inside something that is to be shut down. Whoever calls back from a
// foreign thread enters first and leaves last; the owner waits until all have left. Any thread may
// call any method.
class Gate {
 public:
  // False once the gate is closed: the caller must not begin.
  [[nodiscard]] bool Enter() {
    std::lock_guard lock(mutex_);
    if (closed_) return false;
    ++inside_;
    return true;
  }

  void Leave() {
    std::lock_guard lock(mutex_);
    CHECK_GT(inside_, size_t{0});
    if (--inside_ == 0) empty_.notify_all();
  }

  // Nobody enters any more; returns when the last one has left.
  void CloseAndWait() {
    std::unique_lock lock(mutex_);
    closed_ = true;
    empty_.wait(lock, [this] { return inside_ == 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable empty_;
  size_t inside_ = 0;    // guarded by mutex_
  bool closed_ = false;  // guarded by mutex_
};

}  // namespace sparsekv
