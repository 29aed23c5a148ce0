#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kv_store/segment_layout.h"

namespace sparsekv::kv_store {

// What an owner was granted: blocks[i] holds the tokens from position i * kBlockTokens on.
struct BlockGrant {
  std::vector<uint32_t> blocks;
  std::vector<uint32_t> generations;
};

// Who holds which row block. The headers in shared memory are the truth; free lists and the index
// by owner are derived from them and rebuilt at construction, so that a new store goes on where a
// dead one stopped. Not thread safe: one thread owns a table, and nobody else writes its headers.
//
// A grant is seen whole or not at all, also by the next store: blocks are filled in as kAllocating
// and only then turned kHeld one by one, and each names the size of its grant. An owner whose
// blocks are not all there was caught in the middle of a grant or a release, and loses the rest.
class BlockTable {
 public:
  struct Config {
    uint32_t pools = 0;
    uint32_t blocks = 0;  // per pool
    uint64_t fingerprint = 0;
    uint64_t store_boot_id = 0;  // stamped on what this table grants
  };
  struct Takeover {
    size_t owners = 0;            // (pool, owner) pairs that hold blocks
    uint64_t held_blocks = 0;     // theirs
    uint64_t settled_blocks = 0;  // freed because their change was half done
  };

  // `headers`: [pools][blocks], zeroed or left by an earlier table; must outlive this.
  BlockTable(BlockHeader* headers, const Config& config);
  BlockTable(const BlockTable&) = delete;
  BlockTable& operator=(const BlockTable&) = delete;

  // Takes blocks for `tokens` tokens, all or none. INVALID_ARGUMENT: a bad pool, owner 0, no
  // tokens, or more than the pool has in all; ALREADY_EXISTS: the owner holds blocks of this pool;
  // RESOURCE_EXHAUSTED: not enough are free now.
  absl::StatusOr<BlockGrant> Allocate(uint32_t pool, uint64_t owner, uint32_t tokens);

  // Gives back all that the owner holds in the pool; how many blocks that was (0 is no error).
  absl::StatusOr<uint32_t> Release(uint32_t pool, uint64_t owner);

  // Gives back the blocks of every owner that is not named; how many that was.
  absl::StatusOr<uint32_t> Reconcile(uint32_t pool, std::span<const uint64_t> live_owners);

  uint32_t pools() const { return config_.pools; }
  uint32_t blocks() const { return config_.blocks; }
  // REQUIRES: pool < pools().
  uint32_t free_blocks(uint32_t pool) const;
  // What construction found.
  const Takeover& takeover() const { return takeover_; }

 private:
  struct Pool {
    std::span<BlockHeader> headers;
    // First freed, first taken: a block rests as long as it can before somebody else writes to it.
    std::deque<uint32_t> free;
    std::unordered_map<uint64_t, std::vector<uint32_t>> owners;  // in order of position
  };

  void TakeOver(Pool& pool);
  void Grant(Pool& pool, uint64_t owner, const std::vector<uint32_t>& blocks);
  void Free(Pool& pool, uint32_t block);
  absl::Status CheckPool(uint32_t pool) const;

  const Config config_;
  std::vector<Pool> pools_;
  Takeover takeover_;
};

}  // namespace sparsekv::kv_store
