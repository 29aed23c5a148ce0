#include "kv_store/client.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <thread>

namespace sparsekv::kv_store {
namespace {

constexpr uint64_t kFingerprint = 0xabc;
constexpr uint64_t kOwner = 77;
constexpr RowLayout kLayout = {.layers = 3, .kv_heads = 2, .head_dim = 16, .blocks = 5};

class Client : public testing::Test {
 protected:
  Client() : client_(SegmentClient::MakeLocal(kLayout, kFingerprint)) {
    grant_ = *client_->Grant(2 * kBlockTokens, kOwner);
  }
  RowStamp& stamp(uint32_t layer, uint32_t block) {
    return StampsOf(client_->rows(), kLayout)[layer * kLayout.blocks + block];
  }
  static void ExpectDataLoss(const absl::Status& status, const std::string& field) {
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << field;
    EXPECT_NE(std::string(status.message()).find(field), std::string::npos) << status;
  }

  std::unique_ptr<SegmentClient> client_;
  BlockGrant grant_;
};

TEST_F(Client, ALocalSegmentGrantsLikeTheStore) {
  EXPECT_EQ(client_->layout(), kLayout);
  EXPECT_EQ(client_->fingerprint(), kFingerprint);
  EXPECT_NE(client_->store_boot_id(), 0u);
  EXPECT_TRUE(client_->store_alive());
  ASSERT_EQ(grant_.blocks.size(), 2u);
  EXPECT_EQ(client_->Grant(1, kOwner).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(client_->Grant(4 * kBlockTokens, 1).status().code(),
            absl::StatusCode::kResourceExhausted);
  client_->ReleaseLocal(kOwner);
  EXPECT_TRUE(client_->Grant(5 * kBlockTokens, 1).ok());
  std::memset(client_->rows(), 1, kLayout.pool_bytes());
}

TEST_F(Client, CheckBlockAcceptsItsGrantOnly) {
  const uint32_t block = grant_.blocks[1], generation = grant_.generations[1];
  EXPECT_TRUE(client_->CheckBlock(block, kOwner, generation, kBlockTokens).ok());
  ExpectDataLoss(client_->CheckBlock(block, kOwner + 1, generation, kBlockTokens),
                 "owner is 77, expected 78");
  ExpectDataLoss(client_->CheckBlock(block, kOwner, generation + 1, kBlockTokens), "generation");
  ExpectDataLoss(client_->CheckBlock(block, kOwner, generation, 0), "first position");
  ExpectDataLoss(client_->CheckBlock(4, kOwner, 0, 0), "state");  // never granted
  EXPECT_EQ(client_->CheckBlock(5, kOwner, generation, 0).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(client_->CheckBlock(~0u, kOwner, generation, 0).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(Client, CheckBlockSeesReleaseAndReuse) {
  const uint32_t block = grant_.blocks[0], generation = grant_.generations[0];
  client_->ReleaseLocal(kOwner);
  ExpectDataLoss(client_->CheckBlock(block, kOwner, generation, 0), "state");
  // The same owner again, with every block: the same block at another generation.
  const BlockGrant again = *client_->Grant(5 * kBlockTokens, kOwner);
  for (uint32_t i = 0; i < again.blocks.size(); ++i) {
    if (again.blocks[i] != block) continue;
    ExpectDataLoss(client_->CheckBlock(block, kOwner, generation, i * kBlockTokens), "generation");
    EXPECT_TRUE(client_->CheckBlock(block, kOwner, again.generations[i], i * kBlockTokens).ok());
  }
}

TEST_F(Client, RowsCountOnceStampedAndPublished) {
  const uint32_t block = grant_.blocks[1], generation = grant_.generations[1];
  const auto check = [&](uint32_t layer, uint32_t rows) {
    return client_->CheckRows(layer, block, kOwner, generation, kBlockTokens, rows);
  };
  ExpectDataLoss(check(2, 0), "generation");
  client_->StampRows(2, block, kOwner, generation, kBlockTokens);
  EXPECT_TRUE(check(2, 0).ok());
  ExpectDataLoss(check(2, 1), "rows_valid is 0, expected 1");
  client_->PublishRows(2, block, 7);
  EXPECT_TRUE(check(2, 7).ok());
  ExpectDataLoss(check(2, 8), "rows_valid");
  client_->PublishRows(2, block, kBlockTokens);
  EXPECT_TRUE(check(2, kBlockTokens).ok());
  client_->PublishRows(2, block, 3);  // rolled back
  ExpectDataLoss(check(2, 4), "rows_valid");
  ExpectDataLoss(check(1, 0), "generation");  // another layer has its own stamp
  client_->StampRows(2, block, kOwner, generation, kBlockTokens);
  ExpectDataLoss(check(2, 1), "rows_valid");  // a new stamp starts from none
}

TEST_F(Client, CheckRowsSeesEveryWrongField) {
  const uint32_t block = grant_.blocks[1], generation = grant_.generations[1];
  const struct {
    const char* field;
    void (*corrupt)(RowStamp&);
  } cases[] = {
      {"generation", [](RowStamp& stamp) { stamp.tag = MakeTag(9, kBlockTokens); }},
      {"generation", [](RowStamp& stamp) { stamp.tag = 0; }},
      {"rows_valid", [](RowStamp& stamp) { stamp.tag = stamp.tag + 1; }},  // 65 of 64
      {"owner", [](RowStamp& stamp) { stamp.owner = 1; }},
      {"layer", [](RowStamp& stamp) { stamp.layer = 2; }},
      {"first position", [](RowStamp& stamp) { stamp.first_position = 0; }},
      {"fingerprint", [](RowStamp& stamp) { stamp.fingerprint = 1; }},
  };
  for (const auto& test : cases) {
    client_->StampRows(1, block, kOwner, generation, kBlockTokens);
    client_->PublishRows(1, block, kBlockTokens);
    ASSERT_TRUE(client_->CheckRows(1, block, kOwner, generation, kBlockTokens, kBlockTokens).ok());
    test.corrupt(stamp(1, block));
    ExpectDataLoss(client_->CheckRows(1, block, kOwner, generation, kBlockTokens, kBlockTokens),
                   test.field);
  }
  EXPECT_EQ(client_->CheckRows(3, block, kOwner, generation, 0, 0).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(client_->CheckRows(0, 5, kOwner, generation, 0, 0).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(Client, StampsOfOneBlockDoNotTouchItsNeighbours) {
  for (uint32_t layer = 0; layer < kLayout.layers; ++layer) {
    for (uint32_t block = 0; block < kLayout.blocks; ++block) {
      client_->StampRows(layer, block, 100 * layer + block, 1 + layer, block * kBlockTokens);
      client_->PublishRows(layer, block, block);
    }
  }
  for (uint32_t layer = 0; layer < kLayout.layers; ++layer) {
    for (uint32_t block = 0; block < kLayout.blocks; ++block) {
      EXPECT_TRUE(
          client_
              ->CheckRows(layer, block, 100 * layer + block, 1 + layer, block * kBlockTokens, block)
              .ok());
    }
  }
  for (size_t i = 0; i < kLayout.pool_bytes(); ++i) ASSERT_EQ(client_->rows()[i], std::byte{0});
}

// A reader that races with the writer of a stamp or with the table must never accept a mixture. The
// stamp's owner is its generation, the table's owner the block's generation plus 1000.
TEST(ClientRace, AReaderNeverAcceptsTornRecords) {
  const auto client = SegmentClient::MakeLocal(kLayout, kFingerprint);
  std::atomic<uint32_t> current = 1;
  std::atomic<bool> stop = false;
  std::thread reader([&] {
    while (!stop) {
      const uint32_t generation = current;
      EXPECT_FALSE(client->CheckRows(0, 0, generation + 1, generation, 0, 0).ok());
      EXPECT_FALSE(client->CheckRows(0, 0, generation, generation + 1, 0, 0).ok());
      EXPECT_FALSE(client->CheckBlock(0, generation + 1000, generation + 1, 0).ok());
      EXPECT_FALSE(client->CheckBlock(0, generation + 1001, generation, 0).ok());
    }
  });
  for (uint32_t generation = 1; generation < 5000; ++generation) {
    current = generation;
    client->StampRows(0, 0, generation, generation, 0);
    client->PublishRows(0, 0, kBlockTokens);
    const absl::StatusOr<BlockGrant> grant = client->Grant(5 * kBlockTokens, generation + 1000);
    EXPECT_EQ(grant->blocks[0], 0u);
    EXPECT_EQ(grant->generations[0], generation);
    EXPECT_TRUE(client->CheckBlock(0, generation + 1000, generation, 0).ok());
    client->ReleaseLocal(generation + 1000);
  }
  stop = true;
  reader.join();
}

TEST(ClientDeathTest, AnImpossibleLayoutAborts) {
  RowLayout layout = kLayout;
  layout.blocks = 0;
  EXPECT_DEATH(SegmentClient::MakeLocal(layout, 1), "check failed");
}

}  // namespace
}  // namespace sparsekv::kv_store
