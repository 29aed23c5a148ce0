#include "kv_store/block_table.h"

#include <limits>
#include <unordered_set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace sparsekv::kv_store {
namespace {

constexpr uint32_t kLastGeneration = std::numeric_limits<uint32_t>::max();

BlockState StateOf(uint64_t tag) { return static_cast<BlockState>(TagLow(tag)); }

void StoreTag(BlockHeader& header, uint32_t generation, BlockState state) {
  header.tag.store(MakeTag(generation, static_cast<uint32_t>(state)), std::memory_order_release);
}

uint32_t GenerationOf(const BlockHeader& header) {
  return TagGeneration(header.tag.load(std::memory_order_relaxed));
}

}  // namespace

BlockTable::BlockTable(BlockHeader* headers, const Config& config) : config_(config) {
  CHECK_GT(config.pools, 0u);
  CHECK_GT(config.blocks, 0u);
  pools_.resize(config.pools);
  for (uint32_t i = 0; i < config.pools; ++i) {
    pools_[i].headers = {headers + size_t{i} * config.blocks, config.blocks};
    TakeOver(pools_[i]);
  }
}

// Sorts what the headers say into whole grants, which stay, and everything else, which becomes
// free.
void BlockTable::TakeOver(Pool& pool) {
  constexpr uint32_t kMissing = std::numeric_limits<uint32_t>::max();
  std::unordered_map<uint64_t, std::vector<uint32_t>> found;  // kMissing where no block was seen
  std::vector<bool> unplaced(config_.blocks, false);          // neither free nor part of a grant
  for (uint32_t block = 0; block < config_.blocks; ++block) {
    const BlockHeader& header = pool.headers[block];
    const BlockState state = StateOf(header.tag.load(std::memory_order_acquire));
    if (state == BlockState::kFree) {
      Free(pool, block);
      continue;
    }
    unplaced[block] = true;
    const uint64_t owner = header.owner.load(std::memory_order_relaxed);
    const uint32_t total = header.grant_blocks.load(std::memory_order_relaxed);
    const uint32_t first = header.first_position.load(std::memory_order_relaxed);
    if (state != BlockState::kHeld || owner == 0 || total == 0 || total > config_.blocks) continue;
    if (first % kBlockTokens != 0 || first / kBlockTokens >= total) continue;
    if (header.fingerprint.load(std::memory_order_relaxed) != config_.fingerprint) continue;
    std::vector<uint32_t>& grant = found.try_emplace(owner, total, kMissing).first->second;
    if (grant.size() != total || grant[first / kBlockTokens] != kMissing) continue;
    grant[first / kBlockTokens] = block;
  }
  for (auto& [owner, grant] : found) {
    bool whole = true;
    for (uint32_t block : grant) whole = whole && block != kMissing;
    if (!whole) continue;
    for (uint32_t block : grant) unplaced[block] = false;
    takeover_.held_blocks += grant.size();
    ++takeover_.owners;
    pool.owners.emplace(owner, std::move(grant));
  }
  for (uint32_t block = 0; block < config_.blocks; ++block) {
    if (!unplaced[block]) continue;
    Free(pool, block);
    ++takeover_.settled_blocks;
  }
}

absl::StatusOr<BlockGrant> BlockTable::Allocate(uint32_t pool, uint64_t owner, uint32_t tokens) {
  if (absl::Status status = CheckPool(pool); !status.ok()) return status;
  if (owner == 0) return absl::InvalidArgumentError("owner: must not be 0");
  if (tokens == 0) return absl::InvalidArgumentError("tokens: must not be 0");
  const uint64_t needed = (uint64_t{tokens} + kBlockTokens - 1) / kBlockTokens;
  if (needed > config_.blocks) {
    return absl::InvalidArgumentError(absl::StrCat("tokens: ", tokens, " need ", needed,
                                                   " blocks, and a pool has ", config_.blocks,
                                                   " in all"));
  }
  Pool& from = pools_[pool];
  if (auto held = from.owners.find(owner); held != from.owners.end()) {
    return absl::AlreadyExistsError(absl::StrCat("owner: ", owner, " holds ", held->second.size(),
                                                 " blocks of pool ", pool, " already"));
  }
  if (needed > from.free.size()) {
    return absl::ResourceExhaustedError(absl::StrCat("tokens: ", tokens, " need ", needed,
                                                     " blocks, and ", from.free.size(), " of pool ",
                                                     pool, " are free"));
  }
  std::vector<uint32_t> blocks(from.free.begin(), from.free.begin() + static_cast<long>(needed));
  from.free.erase(from.free.begin(), from.free.begin() + static_cast<long>(needed));
  Grant(from, owner, blocks);
  BlockGrant grant;
  for (uint32_t block : blocks) grant.generations.push_back(GenerationOf(from.headers[block]));
  grant.blocks = blocks;
  from.owners.emplace(owner, std::move(blocks));
  return grant;
}

void BlockTable::Grant(Pool& pool, uint64_t owner, const std::vector<uint32_t>& blocks) {
  for (uint32_t i = 0; i < blocks.size(); ++i) {
    BlockHeader& header = pool.headers[blocks[i]];
    // The tag changes before the fields and again after them, so that a reader sees a torn copy.
    // The fields are stored with release order because nothing else keeps them behind the first
    // change.
    StoreTag(header, GenerationOf(header) + 1, BlockState::kAllocating);
    header.owner.store(owner, std::memory_order_release);
    header.fingerprint.store(config_.fingerprint, std::memory_order_release);
    header.store_boot_id.store(config_.store_boot_id, std::memory_order_release);
    header.first_position.store(i * kBlockTokens, std::memory_order_release);
    header.grant_blocks.store(static_cast<uint32_t>(blocks.size()), std::memory_order_release);
  }
  for (uint32_t block : blocks) {
    StoreTag(pool.headers[block], GenerationOf(pool.headers[block]), BlockState::kHeld);
  }
}

void BlockTable::Free(Pool& pool, uint32_t block) {
  BlockHeader& header = pool.headers[block];
  const uint32_t generation = GenerationOf(header);
  StoreTag(header, generation, BlockState::kFree);
  // A block whose generations are used up retires: no (block, generation) is ever given twice.
  if (generation != kLastGeneration) pool.free.push_back(block);
}

absl::StatusOr<uint32_t> BlockTable::Release(uint32_t pool, uint64_t owner) {
  if (absl::Status status = CheckPool(pool); !status.ok()) return status;
  if (owner == 0) return absl::InvalidArgumentError("owner: must not be 0");
  Pool& from = pools_[pool];
  const auto held = from.owners.find(owner);
  if (held == from.owners.end()) return 0u;
  for (uint32_t block : held->second) Free(from, block);
  const uint32_t released = static_cast<uint32_t>(held->second.size());
  from.owners.erase(held);
  return released;
}

absl::StatusOr<uint32_t> BlockTable::Reconcile(uint32_t pool,
                                               std::span<const uint64_t> live_owners) {
  if (absl::Status status = CheckPool(pool); !status.ok()) return status;
  const std::unordered_set<uint64_t> live(live_owners.begin(), live_owners.end());
  Pool& from = pools_[pool];
  uint32_t released = 0;
  for (auto held = from.owners.begin(); held != from.owners.end();) {
    if (live.contains(held->first)) {
      ++held;
      continue;
    }
    for (uint32_t block : held->second) Free(from, block);
    released += static_cast<uint32_t>(held->second.size());
    held = from.owners.erase(held);
  }
  return released;
}

uint32_t BlockTable::free_blocks(uint32_t pool) const {
  CHECK_LT(pool, config_.pools);
  return static_cast<uint32_t>(pools_[pool].free.size());
}

absl::Status BlockTable::CheckPool(uint32_t pool) const {
  if (pool < config_.pools) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("pool: ", pool, ", and there are ", config_.pools));
}

}  // namespace sparsekv::kv_store
