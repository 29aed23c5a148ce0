#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <stop_token>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/row_layout.h"
#include "base/shared_memory.h"
#include "kv_store/gather_layout.h"
#include "kv_store/segment_layout.h"

namespace sparsekv::kv_store {

// The store's side of kv_store/gather_layout.h: threads that copy the rows workers ask for into
// staging slots. They watch the rings for a moment after the last request, then sleep until a
// doorbell rings.
//
// No row of another owner, generation, layer or position gets out as done: a row's block is
// compared with the store's table and with the row stamp before it is copied and again after, and
// the rows must be complete both times. A request with one bad row yields none.
//
// Threads: Open, Close and counters from any; its own threads hold the lock only to take a request.
class GatherServer {
 public:
  struct Config {
    RowLayout layout;
    uint64_t fingerprint = 0;
    uint64_t store_boot_id = 0;
    uint32_t threads = 1;  // for all pools together; 0: requests are taken by nobody
    size_t staging_bytes = kDefaultStagingBytes;  // at most, per attached worker
  };
  // One pool's memory, read only. Must outlive the server.
  struct Pool {
    const BlockHeader* blocks = nullptr;  // [layout.blocks]
    const std::byte* rows = nullptr;      // RowsBytes(layout)
  };
  // What a worker needs. The descriptors are the server's, until Close.
  struct Offer {
    int memory_fd = -1;
    int doorbell_fd = -1;    // eventfd: the worker wakes the store
    int completion_fd = -1;  // eventfd: the store wakes the worker
  };
  struct Counters {
    uint64_t requests = 0;  // done
    uint64_t rows = 0;      // of them
    uint64_t refused = 0;
  };

  // INVALID_ARGUMENT: staging_bytes do not hold one slot.
  static absl::StatusOr<std::unique_ptr<GatherServer>> Start(const Config& config,
                                                             std::vector<Pool> pools);
  // Requests that are under way are finished, the others dropped.
  ~GatherServer();

  // New memory for the worker that attaches to the pool; an earlier one's is forgotten.
  // RESOURCE_EXHAUSTED where the machine has too little for it.
  absl::StatusOr<Offer> Open(uint32_t pool);
  // The pool's worker is gone: what it asked for is dropped.
  void Close(uint32_t pool);

  Counters counters() const;

  // Memory of one attached worker.
  static size_t BytesPerWorker(const RowLayout& layout, size_t staging_bytes);

 private:
  // What one attached worker was given. Lives until its last request under way is finished.
  struct Session {
    Pool pool;
    Mapping memory;
    GatherView view;
    UniqueFd memory_fd, doorbell, completion;
    uint64_t taken = 0;  // position of the next entry; guarded by mutex_
  };
  // A request, copied out of shared memory and not yet checked.
  struct Request {
    std::shared_ptr<Session> session;
    uint64_t position = 0;
    uint64_t owner = 0;
    uint32_t layer = 0;
    uint32_t slot = 0;
    uint32_t rows = 0;
  };
  struct Index {
    uint32_t block, generation, kv_head, token;
  };

  GatherServer(const Config& config, std::vector<Pool> pools);
  absl::StatusOr<std::shared_ptr<Session>> MakeSession(uint32_t pool) const;
  void Serve(const std::stop_token& stop);
  void Sleep();
  void AnnounceSleepers();
  std::optional<Request> Take();
  void Handle(const Request& request);
  GatherStatus Gather(const Request& request, std::byte* staging) const;
  GatherStatus CheckRows(const Request& request, std::span<const Index> indices) const;

  const Config config_;
  const GatherGeometry geometry_;
  const std::vector<Pool> pools_;
  UniqueFd epoll_;
  UniqueFd stop_;  // eventfd: wakes every thread for good

  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<Session>> sessions_;  // by pool; guarded by mutex_
  uint32_t next_pool_ = 0;                          // guarded by mutex_
  uint32_t sleepers_ = 0;                           // guarded by mutex_
  Counters counters_;                               // guarded by mutex_

  std::vector<std::jthread> threads_;  // last: they use all of the above
};

}  // namespace sparsekv::kv_store
