#include "kv_store/block_table.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace sparsekv::kv_store {
namespace {

constexpr uint64_t kFingerprint = 0xfeed;

// A table over memory that outlives it, as meta does.
class Tables {
 public:
  Tables(uint32_t pools, uint32_t blocks)
      : pools_(pools), blocks_(blocks), headers_(new BlockHeader[pools * blocks]()) {
    Restart();
  }
  BlockTable& operator*() { return *table_; }
  BlockTable* operator->() { return &*table_; }
  BlockHeader& header(uint32_t pool, uint32_t block) { return headers_[pool * blocks_ + block]; }
  BlockState state(uint32_t pool, uint32_t block) {
    return static_cast<BlockState>(TagLow(header(pool, block).tag));
  }
  void SetState(uint32_t pool, uint32_t block, BlockState state) {
    std::atomic<uint64_t>& tag = header(pool, block).tag;
    tag = MakeTag(TagGeneration(tag), static_cast<uint32_t>(state));
  }
  // The store dies as it stands and another takes its place.
  void Restart() {
    table_.emplace(headers_.get(), BlockTable::Config{.pools = pools_,
                                                      .blocks = blocks_,
                                                      .fingerprint = kFingerprint,
                                                      .store_boot_id = ++boot_id_});
  }

 private:
  const uint32_t pools_, blocks_;
  uint64_t boot_id_ = 0;
  std::unique_ptr<BlockHeader[]> headers_;
  std::optional<BlockTable> table_;
};

TEST(BlockTable, GrantsWholeBlocksAndStampsThem) {
  Tables tables(2, 8);
  const BlockGrant grant = *tables->Allocate(1, 77, 2 * kBlockTokens + 1);
  ASSERT_EQ(grant.blocks.size(), 3u);
  EXPECT_EQ(tables->free_blocks(1), 5u);
  EXPECT_EQ(tables->free_blocks(0), 8u);
  for (uint32_t i = 0; i < 3; ++i) {
    const BlockHeader& header = tables.header(1, grant.blocks[i]);
    EXPECT_EQ(tables.state(1, grant.blocks[i]), BlockState::kHeld);
    EXPECT_EQ(TagGeneration(header.tag), grant.generations[i]);
    EXPECT_GE(grant.generations[i], 1u);
    EXPECT_EQ(header.owner, 77u);
    EXPECT_EQ(header.fingerprint, kFingerprint);
    EXPECT_EQ(header.store_boot_id, 1u);
    EXPECT_EQ(header.first_position, i * kBlockTokens);
    EXPECT_EQ(header.grant_blocks, 3u);
  }
}

TEST(BlockTable, ErrorsNameTheFieldAndChangeNothing) {
  Tables tables(1, 4);
  ASSERT_TRUE(tables->Allocate(0, 1, kBlockTokens).ok());
  const struct {
    uint32_t pool;
    uint64_t owner;
    uint32_t tokens;
    absl::StatusCode code;
    const char* field;
  } cases[] = {
      {1, 2, 1, absl::StatusCode::kInvalidArgument, "pool"},
      {0, 0, 1, absl::StatusCode::kInvalidArgument, "owner"},
      {0, 2, 0, absl::StatusCode::kInvalidArgument, "tokens"},
      {0, 2, 4 * kBlockTokens + 1, absl::StatusCode::kInvalidArgument, "tokens"},
      {0, 2, std::numeric_limits<uint32_t>::max(), absl::StatusCode::kInvalidArgument, "tokens"},
      {0, 1, 1, absl::StatusCode::kAlreadyExists, "owner"},
      {0, 2, 3 * kBlockTokens + 1, absl::StatusCode::kResourceExhausted, "tokens"},
  };
  for (const auto& test : cases) {
    const absl::Status status = tables->Allocate(test.pool, test.owner, test.tokens).status();
    EXPECT_EQ(status.code(), test.code) << status;
    EXPECT_TRUE(std::string(status.message()).starts_with(test.field)) << status;
    EXPECT_EQ(tables->free_blocks(0), 3u);
  }
  EXPECT_EQ(tables->Release(1, 1).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(tables->Release(0, 0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(tables->Reconcile(1, {}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(*tables->Release(0, 999), 0u);
  EXPECT_TRUE(tables->Allocate(0, 2, 3 * kBlockTokens).ok());  // exactly what is left
}

TEST(BlockTable, ReconcileKeepsTheNamedOwnersOfItsPoolOnly) {
  Tables tables(2, 8);
  for (uint64_t owner : {1, 2, 3}) ASSERT_TRUE(tables->Allocate(0, owner, 2 * kBlockTokens).ok());
  ASSERT_TRUE(tables->Allocate(1, 1, kBlockTokens).ok());
  const std::vector<uint64_t> live = {2, 2, 99};
  EXPECT_EQ(*tables->Reconcile(0, live), 4u);
  EXPECT_EQ(tables->free_blocks(0), 6u);
  EXPECT_EQ(tables->free_blocks(1), 7u);
  EXPECT_EQ(*tables->Reconcile(0, live), 0u);
  EXPECT_EQ(*tables->Release(0, 2), 2u);
}

TEST(BlockTable, ASuccessorKeepsWholeGrantsInOrder) {
  Tables tables(1, 8);
  ASSERT_TRUE(tables->Allocate(0, 1, 2 * kBlockTokens).ok());
  ASSERT_EQ(*tables->Release(0, 1), 2u);  // so that the next grant is not simply 0, 1, 2
  const BlockGrant before = *tables->Allocate(0, 2, 7 * kBlockTokens);
  tables.Restart();
  EXPECT_EQ(tables->takeover().owners, 1u);
  EXPECT_EQ(tables->takeover().held_blocks, 7u);
  EXPECT_EQ(tables->takeover().settled_blocks, 0u);
  EXPECT_EQ(tables->free_blocks(0), 1u);
  EXPECT_EQ(tables->Allocate(0, 2, 1).status().code(), absl::StatusCode::kAlreadyExists);
  for (uint32_t i = 0; i < 7; ++i) {
    EXPECT_EQ(tables.header(0, before.blocks[i]).first_position, i * kBlockTokens);
    EXPECT_EQ(tables.header(0, before.blocks[i]).store_boot_id, 1u);  // who granted it
  }
  EXPECT_EQ(*tables->Release(0, 2), 7u);
  EXPECT_EQ(tables->free_blocks(0), 8u);
}

// Every prefix of the writes of a grant or a release, as kill -9 would leave it.
TEST(BlockTable, ASuccessorUndoesHalfDoneChanges) {
  for (uint32_t done = 0; done < 3; ++done) {
    for (BlockState rest : {BlockState::kAllocating, BlockState::kFree}) {
      Tables tables(1, 8);
      const BlockGrant kept = *tables->Allocate(0, 1, 2 * kBlockTokens);
      const BlockGrant half = *tables->Allocate(0, 2, 3 * kBlockTokens);
      const bool grant = rest == BlockState::kAllocating;
      for (uint32_t i = 0; i < 3; ++i) {
        // A grant turns them kHeld from the first on; a release frees them from the first on.
        if ((i >= done) == grant) tables.SetState(0, half.blocks[i], rest);
      }
      tables.Restart();
      const bool untouched = !grant && done == 0;  // a release that had not begun
      EXPECT_EQ(tables->takeover().owners, untouched ? 2u : 1u);
      EXPECT_EQ(tables->free_blocks(0), untouched ? 3u : 6u);
      EXPECT_EQ(*tables->Release(0, 2), untouched ? 3u : 0u);
      EXPECT_EQ(*tables->Release(0, 1), 2u);
      const BlockGrant all = *tables->Allocate(0, 3, 8 * kBlockTokens);
      for (uint32_t i = 0; i < 8; ++i) {
        for (uint32_t j = 0; j < 3; ++j) {
          if (all.blocks[i] != half.blocks[j]) continue;
          EXPECT_GT(all.generations[i], half.generations[j]);
        }
      }
    }
  }
}

TEST(BlockTable, ASuccessorFreesBlocksThatMakeNoSense) {
  const auto corruptions = std::to_array<void (*)(BlockHeader&)>({
      [](BlockHeader& header) { header.owner = 0; },
      [](BlockHeader& header) { header.owner = 2; },  // another owner's position twice
      [](BlockHeader& header) { header.fingerprint = 1; },
      [](BlockHeader& header) { header.first_position = 1; },
      [](BlockHeader& header) { header.first_position = kBlockTokens; },
      [](BlockHeader& header) { header.first_position = 1u << 31; },
      [](BlockHeader& header) { header.grant_blocks = 0; },
      [](BlockHeader& header) { header.grant_blocks = 3; },
      [](BlockHeader& header) { header.grant_blocks = ~0u; },
      [](BlockHeader& header) { header.tag = MakeTag(1, 77); },
  });
  for (size_t i = 0; i < corruptions.size(); ++i) {
    Tables tables(1, 8);
    const BlockGrant bad = *tables->Allocate(0, 1, 2 * kBlockTokens);
    ASSERT_TRUE(tables->Allocate(0, 2, 2 * kBlockTokens).ok());
    corruptions[i](tables.header(0, bad.blocks[0]));
    tables.Restart();
    EXPECT_EQ(*tables->Release(0, 1), 0u) << i;
    EXPECT_EQ(*tables->Release(0, 2), 2u) << i;
    EXPECT_EQ(tables->free_blocks(0), 8u) << i;
  }
}

TEST(BlockTable, ABlockRetiresWhenItsGenerationsAreUsedUp) {
  constexpr uint32_t kLast = std::numeric_limits<uint32_t>::max();
  Tables tables(1, 2);
  tables.header(0, 1).tag = MakeTag(kLast - 1, static_cast<uint32_t>(BlockState::kFree));
  tables.Restart();
  const BlockGrant grant = *tables->Allocate(0, 1, 2 * kBlockTokens);
  EXPECT_EQ(grant.generations[1], kLast);
  EXPECT_EQ(*tables->Release(0, 1), 2u);
  EXPECT_EQ(tables->free_blocks(0), 1u);
  tables.Restart();
  EXPECT_EQ(tables->free_blocks(0), 1u);
  EXPECT_EQ(tables->Allocate(0, 2, kBlockTokens)->blocks[0], 0u);
}

// The obvious store: for each pool, who holds which blocks. Random calls and restarts must agree
// with it, and no (pool, block, generation) may ever come twice.
TEST(BlockTable, RandomCallsAgreeWithAnObviousModel) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    std::mt19937 random(seed);
    const auto below = [&](uint32_t limit) { return static_cast<uint32_t>(random() % limit); };
    const uint32_t pools = 1 + below(3), blocks = 1 + below(40);
    Tables tables(pools, blocks);
    std::vector<std::map<uint64_t, std::set<uint32_t>>> model(pools);
    std::set<std::pair<uint64_t, uint32_t>> generations_seen;
    const auto used = [&](uint32_t pool) {
      size_t count = 0;
      for (const auto& [owner, held] : model[pool]) count += held.size();
      return count;
    };
    for (int step = 0; step < 600; ++step) {
      const uint32_t pool = below(pools);
      const uint64_t owner = 1 + below(8);
      const uint32_t action = below(10);
      if (action < 6) {
        const uint32_t needed = 1 + below(blocks / 3 + 2);
        const uint32_t tokens = needed * kBlockTokens - below(kBlockTokens);
        absl::StatusOr<BlockGrant> grant = tables->Allocate(pool, owner, tokens);
        const bool fits = needed <= blocks - used(pool) && !model[pool].contains(owner);
        ASSERT_EQ(grant.ok(), fits) << grant.status();
        if (!fits) continue;
        ASSERT_EQ(grant->blocks.size(), needed);
        for (uint32_t i = 0; i < needed; ++i) {
          for (const auto& [other, held] : model[pool])
            ASSERT_FALSE(held.contains(grant->blocks[i]));
          const uint64_t place = uint64_t{pool} << 32 | grant->blocks[i];
          ASSERT_TRUE(generations_seen.emplace(place, grant->generations[i]).second);
        }
        model[pool][owner] = {grant->blocks.begin(), grant->blocks.end()};
        ASSERT_EQ(model[pool][owner].size(), needed);
      } else if (action < 8) {
        const size_t held = model[pool].contains(owner) ? model[pool][owner].size() : 0;
        ASSERT_EQ(*tables->Release(pool, owner), held);
        model[pool].erase(owner);
      } else if (action < 9) {
        const std::vector<uint64_t> live = {owner, owner + 1, owner + 2};
        const size_t before = used(pool);
        std::erase_if(model[pool], [&](const auto& entry) {
          return entry.first < owner || entry.first > owner + 2;
        });
        ASSERT_EQ(*tables->Reconcile(pool, live), before - used(pool));
      } else {
        tables.Restart();
        ASSERT_EQ(tables->takeover().settled_blocks, 0u);
      }
      for (uint32_t i = 0; i < pools; ++i) ASSERT_EQ(tables->free_blocks(i), blocks - used(i));
    }
  }
}

}  // namespace
}  // namespace sparsekv::kv_store
