#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/row_layout.h"
#include "base/shared_memory.h"
#include "kv_store/segment_layout.h"

namespace sparsekv::kv_store {

// The store's own hold on the segment: meta mapped writable, and the descriptors that workers get.
// Constant after Open, apart from the table that meta holds.
//
// The memfds come from the parent, so the segment outlives a store. The seal on meta, set last,
// says that a segment is complete: without it Open makes one (again, if an earlier store died over
// it), with it Open takes over what is there.
class Segment {
 public:
  struct Spec {
    RowLayout layout;  // of each pool
    uint64_t fingerprint = 0;
    std::vector<int> nodes;  // of the machine, by pool: whose memory its rows prefer; -1 or absent:
                             // any. Looked at by the first Open only.
  };

  // `rows_fds`: one per pool. Puts `store_boot_id` into the header. RESOURCE_EXHAUSTED: too little
  // memory; FAILED_PRECONDITION: what is there was made with another spec, or is no segment.
  static absl::StatusOr<Segment> Open(const Spec& spec, UniqueFd meta_fd,
                                      std::vector<UniqueFd> rows_fds, uint64_t store_boot_id,
                                      size_t available_bytes);

  BlockHeader* blocks() const { return BlocksOf(meta_.data()); }  // [pools][blocks]
  const SegmentFacts& facts() const { return facts_; }
  bool adopted() const { return adopted_; }  // made by an earlier store
  int meta_read_only_fd() const { return meta_read_only_.get(); }
  int rows_fd(uint32_t pool) const { return rows_fds_.at(pool).get(); }
  // A pool's rows and stamps, to read; independent of this.
  absl::StatusOr<Mapping> MapRows(uint32_t pool) const;
  // Of all the files.
  size_t bytes() const;

 private:
  Segment() = default;
  absl::Status Create(const Spec& spec, int meta_fd, size_t available_bytes);
  absl::Status Adopt(const Spec& spec, int meta_fd);

  SegmentFacts facts_;
  bool adopted_ = false;
  Mapping meta_;
  UniqueFd meta_read_only_;
  std::vector<UniqueFd> rows_fds_;
};

}  // namespace sparsekv::kv_store
