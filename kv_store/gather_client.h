#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "base/row_layout.h"
#include "base/shared_memory.h"
#include "kv_store/gather_layout.h"

namespace sparsekv::kv_store {

// One token row of a sequence: where it lies in the pool, and the generation at which the block was
// granted to the sequence.
struct RowRef {
  uint32_t block = 0;
  uint32_t generation = 0;
  uint16_t kv_head = 0;
  uint16_t token = 0;  // within the block
};

// The worker's side of gather (kv_store/gather_layout.h): posts requests for rows to the store's
// threads and waits for them, never longer than it is told. Whatever the store does, the worker can
// always read the rows directly instead; a store that misses three deadlines in a row is left alone
// for a while (10 ms, doubling up to 1 s), so that it slows no step.
//
// A done request's rows were, while they were copied, complete rows of exactly the blocks asked
// for. A worker that rolls rows back or writes them again must not use requests older than that.
//
// Threads: one uses it (the worker's prefetch thread), except for counters (any) and Renew (the
// thread that calls SegmentClient::Reattach).
class GatherClient {
 public:
  // Names a posted request until it is released. REQUIRES for all that take one: not released yet.
  struct Ticket {
    uint32_t slot = 0;
    uint64_t position = 0;
  };
  enum class State {
    kDone,     // Rows are there
    kExpired,  // not done at the deadline; may be waited for again
    kRefused,  // by the store: a row is not what the request says, or not complete
    kGone,     // the store is gone, or another one is there
  };
  struct Counters {
    uint64_t posted = 0;
    uint64_t rows = 0;  // of done requests
    uint64_t done = 0;
    uint64_t expired = 0;
    uint64_t refused = 0;
    uint64_t gone = 0;
    uint64_t turned_away = 0;  // posts that were not taken
  };
  // Descriptors that the store passed.
  struct Fds {
    UniqueFd memory, doorbell, completion;
  };

  // `connection`: hangs up when the store is gone; an empty one never does. DATA_LOSS: memory that
  // is not what the store should have passed.
  static absl::StatusOr<std::unique_ptr<GatherClient>> Make(
      const RowLayout& layout, uint64_t store_boot_id, Fds fds,
      std::shared_ptr<const UniqueFd> connection);

  uint32_t max_rows() const { return kMaxRequestRows; }  // of one request

  // Asks for rows of one sequence (`owner`) in one layer. Nothing where every slot is taken, the
  // store is known to be gone, or it is being left alone; never waits.
  // REQUIRES: 1 to max_rows() rows.
  std::optional<Ticket> Post(uint32_t layer, uint64_t owner, std::span<const RowRef> rows);

  // Waits for a request until the deadline; one in the past only looks. A ticket that is done stays
  // so, whatever becomes of the store.
  State Wait(Ticket ticket, std::chrono::steady_clock::time_point deadline);

  // [rows][row_bytes] in the order of the request, valid until Release.
  // REQUIRES: Wait has said kDone.
  const std::byte* Rows(Ticket ticket) const;

  // Gives the slot back. A request that the store has not completed keeps its slot from being used
  // until it has, so that no late copy lands among other rows. Every ticket must be released before
  // requests go to a restarted store.
  void Release(Ticket ticket);

  Counters counters() const;

  // Requests go to this store from now on, once every ticket of the old one is released: until then
  // those not done are kGone and posts are turned away.
  absl::Status Renew(uint64_t store_boot_id, Fds fds, std::shared_ptr<const UniqueFd> connection);

 private:
  enum class SlotState : uint8_t { kFree, kPosted, kDone, kRefused };
  struct Slot {
    SlotState state = SlotState::kFree;
    bool released = false;  // and still posted: in quarantine
    uint64_t position = 0;
    uint32_t rows = 0;
  };
  // One store's memory.
  struct Session {
    Mapping memory;
    GatherView view;
    UniqueFd doorbell, completion;
    std::shared_ptr<const UniqueFd> connection;
    std::vector<Slot> slots;
    std::vector<uint32_t> free;        // slots
    std::vector<uint32_t> quarantine;  // slots
    uint64_t posted = 0;
    uint32_t held = 0;  // tickets not released
    bool gone = false;
  };

  explicit GatherClient(const RowLayout& layout) : layout_(layout) {}
  absl::StatusOr<std::unique_ptr<Session>> Map(uint64_t store_boot_id, Fds fds,
                                               std::shared_ptr<const UniqueFd> connection) const;
  bool MayPost();
  std::optional<uint32_t> TakeSlot();
  Slot& SlotOf(Ticket ticket) const;
  bool Collect(uint32_t index);
  void WaitForCompletion(uint32_t index, std::chrono::steady_clock::time_point deadline);
  void CountMiss();

  const RowLayout layout_;
  std::unique_ptr<Session> session_;

  std::mutex mutex_;
  std::unique_ptr<Session> renewed_;  // guarded by mutex_
  std::atomic<bool> renewal_ = false;

  uint32_t misses_ = 0;  // deadlines missed in a row
  std::chrono::steady_clock::duration pause_ = {};
  std::chrono::steady_clock::time_point paused_until_ = {};

  struct {
    std::atomic<uint64_t> posted = 0, rows = 0, done = 0, expired = 0, refused = 0, gone = 0,
                          turned_away = 0;
  } counts_;
};

}  // namespace sparsekv::kv_store
