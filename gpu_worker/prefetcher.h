#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "gpu_worker/simulated_link.h"
#include "gpu_worker/timeline.h"
#include "kernels/hot_rows.h"
#include "kv_store/client.h"

namespace sparsekv {

// Rows of one KV head of a sequence that a prediction wants in their slots.
struct PrefetchPiece {
  RowTable from, to;
  uint32_t kv_head = 0;
  const RowMove* moves = nullptr;  // [count]
  uint32_t count = 0;
  uint64_t owner = 0;                     // for gather: as the store knows the sequence,
  const uint32_t* generations = nullptr;  // and its blocks
};

// Brings predicted rows while the device computes: the cpu backend's side stream. It works through
// jobs in the order in which they were started, in slices; a layer that begins stops its job, which
// ends after the slice that is on its way, so that what the layer still misses need not queue
// behind predictions. The device thread starts and stops; the copies are made by a thread of this
// object, which alone writes the slots of a job until it is stopped.
class Prefetcher {
 public:
  struct Options {
    SimulatedLink* link = nullptr;             // null: a copy takes what it takes
    kv_store::GatherClient* gather = nullptr;  // null: direct
    Timeline* timeline = nullptr;
  };
  explicit Prefetcher(const Options& options);
  ~Prefetcher();
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  // `pieces` and what they name stay as they are until Stop or Finish. Returns the job's number.
  uint64_t Start(uint32_t layer, std::span<const PrefetchPiece> pieces);
  // Rows that are in their slots, in the order of the pieces; the job is over. Jobs are stopped in
  // the order in which they were started. Stop gives up what is not on its way; Finish waits.
  uint64_t Stop(uint64_t job) { return End(job, /*give_up=*/true); }
  uint64_t Finish(uint64_t job) { return End(job, /*give_up=*/false); }

  uint64_t direct_bytes() const { return direct_bytes_; }
  uint64_t gather_bytes() const { return gather_bytes_; }

 private:
  using Clock = std::chrono::steady_clock;
  struct Job {
    uint64_t number = 0;
    uint32_t layer = 0;
    std::span<const PrefetchPiece> pieces;
    uint64_t rows = 0;
    uint64_t issued = 0;  // the thread's alone, with the two below
    size_t piece = 0;     // of the next row
    uint32_t in_piece = 0;
    bool stopped = false;  // by the device thread
    bool over = false;
  };
  // Consecutive rows of one sequence.
  struct Slice {
    struct Part {
      const PrefetchPiece* piece;
      uint32_t first, count;
    };
    std::vector<Part> parts;
    uint32_t rows = 0;
    size_t bytes = 0;
  };

  uint64_t End(uint64_t job, bool give_up);
  void Loop();
  void RunJob(std::unique_lock<std::mutex>& lock, Job& job);
  Slice NextSlice(Job& job) const;
  void Bring(const Job& job, const Slice& slice);
  bool Gather(uint32_t layer, const Slice& slice);
  void CopyDirect(const Slice& slice);

  const Options options_;
  std::atomic<uint64_t> direct_bytes_{0}, gather_bytes_{0};

  std::mutex mutex_;
  std::condition_variable changed_;  // a job was started or stopped, or is over
  std::deque<Job> jobs_;             // not ended yet; references stay valid at both ends
  uint64_t next_ = 1;
  bool leaving_ = false;
  std::vector<kv_store::RowRef> refs_;  // the thread's
  std::thread thread_;                  // last: it uses the rest
};

}  // namespace sparsekv
