#include "gpu_worker/prefetcher.h"

#include <sys/prctl.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace sparsekv {

namespace {

// A slice is what a correction may have to wait for: 128 KiB are 32 us at 4 GB/s.
constexpr size_t kSliceBytes = 128 << 10;
// How long a slice waits for the store before it is read directly.
constexpr std::chrono::milliseconds kGatherDeadline{2};
// Timers of simulated links need be exact to microseconds, not to the kernel's usual 50.
constexpr unsigned long kTimerSlackNs = 1000;

}  // namespace

Prefetcher::Prefetcher(const Options& options) : options_(options), thread_([this] { Loop(); }) {}

Prefetcher::~Prefetcher() {
  {
    std::lock_guard lock(mutex_);
    leaving_ = true;
    for (Job& job : jobs_) job.stopped = true;
  }
  changed_.notify_all();
  thread_.join();
}

uint64_t Prefetcher::Start(uint32_t layer, std::span<const PrefetchPiece> pieces) {
  Job job;
  job.layer = layer;
  for (const PrefetchPiece& piece : pieces) job.rows += piece.count;
  job.pieces = pieces;
  std::lock_guard lock(mutex_);
  job.number = next_++;
  jobs_.push_back(std::move(job));
  changed_.notify_all();
  return next_ - 1;
}

uint64_t Prefetcher::End(uint64_t number, bool give_up) {
  std::unique_lock lock(mutex_);
  CHECK(!jobs_.empty());
  Job& job = jobs_.front();
  CHECK_EQ(job.number, number);
  if (give_up && !job.over) {
    job.stopped = true;
    changed_.notify_all();
  }
  changed_.wait(lock, [&] { return job.over; });
  const uint64_t rows = job.issued;
  jobs_.pop_front();
  return rows;
}

void Prefetcher::Loop() {
  prctl(PR_SET_TIMERSLACK, kTimerSlackNs);
  std::unique_lock lock(mutex_);
  while (true) {
    const auto next = std::find_if(jobs_.begin(), jobs_.end(), [](Job& j) { return !j.over; });
    if (next == jobs_.end()) {
      if (leaving_) return;
      changed_.wait(lock);
      continue;
    }
    Job& job = *next;
    RunJob(lock, job);
    job.over = true;
    changed_.notify_all();
  }
}

// Called and left with the lock. At most two slices are on their way: one on the link and one
// behind it, so that the link is never idle and a stop waits for little.
void Prefetcher::RunJob(std::unique_lock<std::mutex>& lock, Job& job) {
  std::deque<Clock::time_point> arrivals;
  while (!job.stopped && job.issued < job.rows) {
    if (arrivals.size() >= 2) {
      changed_.wait_until(lock, arrivals.front(), [&] { return job.stopped; });
      if (job.stopped) break;
      arrivals.pop_front();
    }
    const Slice slice = NextSlice(job);
    lock.unlock();
    const auto begin = Clock::now();
    Bring(job, slice);
    auto arrival = Clock::now();
    if (options_.link) arrival = std::max(arrival, options_.link->Send(slice.bytes));
    if (options_.timeline) {
      options_.timeline->Add(Timeline::kPrefetch, "prefetch", job.layer, begin, arrival,
                             slice.rows);
    }
    lock.lock();
    job.issued += slice.rows;
    if (options_.link) arrivals.push_back(arrival);
  }
  if (arrivals.empty()) return;
  lock.unlock();
  std::this_thread::sleep_until(arrivals.back());
  lock.lock();
}

Prefetcher::Slice Prefetcher::NextSlice(Job& job) const {
  const size_t row_bytes = job.pieces[job.piece].from.layout->row_bytes();
  size_t most = std::max<size_t>(kSliceBytes / row_bytes, 16);
  if (options_.gather) most = std::min<size_t>(most, options_.gather->max_rows());
  Slice slice;
  const uint64_t owner = job.pieces[job.piece].owner;
  while (job.piece < job.pieces.size() && slice.rows < most) {
    const PrefetchPiece& piece = job.pieces[job.piece];
    if (piece.owner != owner) break;
    const uint32_t count =
        std::min<uint32_t>(piece.count - job.in_piece, static_cast<uint32_t>(most) - slice.rows);
    if (count > 0) slice.parts.push_back({&piece, job.in_piece, count});
    slice.rows += count;
    job.in_piece += count;
    if (job.in_piece == piece.count) {
      ++job.piece;
      job.in_piece = 0;
    }
  }
  slice.bytes = slice.rows * row_bytes;
  return slice;
}

void Prefetcher::Bring(const Job& job, const Slice& slice) {
  if (slice.rows == 0) return;
  if (options_.gather && Gather(job.layer, slice)) {
    gather_bytes_ += slice.bytes;
  } else {
    CopyDirect(slice);
    direct_bytes_ += slice.bytes;
  }
}

// The store copies the rows into a staging slot; from there they go to their slots. False: it did
// not, or not in time.
bool Prefetcher::Gather(uint32_t layer, const Slice& slice) {
  refs_.clear();
  for (const Slice::Part& part : slice.parts) {
    for (uint32_t i = part.first; i < part.first + part.count; ++i) {
      const uint32_t token = part.piece->moves[i].token;
      refs_.push_back({.block = part.piece->from.blocks[token / kBlockTokens],
                       .generation = part.piece->generations[token / kBlockTokens],
                       .kv_head = static_cast<uint16_t>(part.piece->kv_head),
                       .token = static_cast<uint16_t>(token % kBlockTokens)});
    }
  }
  kv_store::GatherClient& gather = *options_.gather;
  const auto ticket = gather.Post(layer, slice.parts.front().piece->owner, refs_);
  if (!ticket) return false;
  const auto state = gather.Wait(*ticket, Clock::now() + kGatherDeadline);
  const bool done = state == kv_store::GatherClient::State::kDone;
  if (done) {
    const std::byte* row = gather.Rows(*ticket);
    for (const Slice::Part& part : slice.parts) {
      const size_t bytes = part.piece->from.layout->row_bytes();
      for (uint32_t i = part.first; i < part.first + part.count; ++i, row += bytes) {
        std::memcpy(part.piece->to.Row(part.piece->kv_head, part.piece->moves[i].slot), row, bytes);
      }
    }
  }
  gather.Release(*ticket);
  return done;
}

void Prefetcher::CopyDirect(const Slice& slice) {
  for (const Slice::Part& part : slice.parts) {
    const PrefetchPiece& piece = *part.piece;
    for (uint32_t i = part.first; i < part.first + part.count; ++i) {
      std::memcpy(piece.to.Row(piece.kv_head, piece.moves[i].slot),
                  piece.from.Row(piece.kv_head, piece.moves[i].token),
                  piece.from.layout->row_bytes());
    }
  }
}

}  // namespace sparsekv
