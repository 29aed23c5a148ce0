#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/row_layout.h"
#include "base/shared_memory.h"
#include "kv_store/block_table.h"
#include "kv_store/gather_client.h"
#include "kv_store/segment_layout.h"

namespace sparsekv::kv_store {

class GatherServer;

// A worker's hold on the segment: its pool of rows, writable, and the store's block table,
// read-only. Rows and stamps stay usable while the store is down; the mappings live as long as this
// does.
//
// Threads: CheckBlock, CheckRows and the accessors from any; StampRows, PublishRows and the rows of
// one (layer, block) from one thread at a time; store_alive and Reattach from one thread.
class SegmentClient {
 public:
  // Attaches to a pool of the store that listens on `attach_socket`. UNAVAILABLE: no store there,
  // or another worker holds the pool (retry once the kernel says that it is gone);
  // INVALID_ARGUMENT: no such pool; FAILED_PRECONDITION: a store of another version or user;
  // DATA_LOSS: a broken segment.
  static absl::StatusOr<std::unique_ptr<SegmentClient>> Attach(const std::string& attach_socket,
                                                               uint32_t pool,
                                                               uint64_t worker_boot_id);

  // A segment of one pool in this process's own memory, allocated as it is touched: the same checks
  // with no store. REQUIRES: WithinLimits(layout, 1); memory that cannot be mapped aborts.
  static std::unique_ptr<SegmentClient> MakeLocal(const RowLayout& layout, uint64_t fingerprint);

  SegmentClient(const SegmentClient&) = delete;
  SegmentClient& operator=(const SegmentClient&) = delete;
  ~SegmentClient();

  const RowLayout& layout() const { return facts_.layout; }
  std::byte* rows() { return rows_.data(); }  // layout().pool_bytes()
  const std::byte* rows() const { return rows_.data(); }
  uint32_t pool() const { return pool_; }
  uint64_t segment_id() const { return facts_.segment_id; }
  uint64_t fingerprint() const { return facts_.fingerprint; }
  uint64_t store_boot_id() const { return store_boot_id_.load(std::memory_order_acquire); }

  // Whether the store's table has the block as this grant says, now. DATA_LOSS with both values if
  // not; INVALID_ARGUMENT for a block that the pool does not have.
  absl::Status CheckBlock(uint32_t block, uint64_t owner, uint32_t generation,
                          uint32_t first_position) const;

  // Before the first row of a block is written in a layer: says whose rows will lie there, none of
  // which is complete. REQUIRES: layer and block of the layout; generation != 0.
  void StampRows(uint32_t layer, uint32_t block, uint64_t owner, uint32_t generation,
                 uint32_t first_position);
  // After the copies of the block's first `rows_valid` rows are complete, of every KV head.
  // REQUIRES: stamped; rows_valid <= kBlockTokens.
  void PublishRows(uint32_t layer, uint32_t block, uint32_t rows_valid);

  // Whether the block's rows in the layer are this grant's and at least that many complete.
  // DATA_LOSS with both values if not; INVALID_ARGUMENT for a layer or block that the layout does
  // not have.
  absl::Status CheckRows(uint32_t layer, uint32_t block, uint64_t owner, uint32_t generation,
                         uint32_t first_position, uint32_t rows_at_least) const;

  // Whether the store still holds the attach connection; does not wait. A local segment's always
  // does.
  bool store_alive() const;

  // After the store's restart: connects again and takes its new boot id; the mappings stay.
  // Statuses as of Attach; FAILED_PRECONDITION too if the store serves another segment, and then
  // this client's rows are nobody's: make a new one.
  absl::Status Reattach();

  // Requests for rows, served by the store's threads; null where the store at Attach offered none.
  // Lives as long as this, over Reattach too.
  GatherClient* gather() const { return gather_.get(); }

  // Local segments only, once, before gather() is used: serves gather() with threads of this
  // process. With no threads every request expires. Memory that cannot be had aborts.
  // REQUIRES: staging_bytes hold a slot (kv_store/gather_layout.h).
  void StartLocalGather(uint32_t threads, size_t staging_bytes = kDefaultStagingBytes);

  // Local segments only: grants and releases as the store would (kv_store/block_table.h).
  absl::StatusOr<BlockGrant> Grant(uint32_t tokens, uint64_t owner);
  void ReleaseLocal(uint64_t owner);

 private:
  struct Connection;
  SegmentClient() = default;
  static absl::StatusOr<Connection> Connect(const std::string& attach_socket, uint32_t pool,
                                            uint64_t worker_boot_id);
  absl::Status Map(int meta_fd, int rows_fd, uint64_t segment_id);
  const BlockHeader& header(uint32_t block) const;
  RowStamp& stamp(uint32_t layer, uint32_t block) const;

  // Constant after construction.
  std::string attach_socket_;
  uint32_t pool_ = 0;
  uint64_t worker_boot_id_ = 0;
  SegmentFacts facts_;
  Mapping meta_;
  Mapping rows_;

  std::atomic<uint64_t> store_boot_id_{0};
  std::shared_ptr<const UniqueFd> connection_;  // gather_ watches it too
  std::unique_ptr<BlockTable> local_table_;     // null unless local
  std::unique_ptr<GatherServer> local_gather_;  // null unless local; reads the mappings above
  std::unique_ptr<GatherClient> gather_;        // may be null
};

}  // namespace sparsekv::kv_store
