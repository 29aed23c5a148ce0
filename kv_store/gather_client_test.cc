#include "kv_store/gather_client.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "kv_store/client.h"
#include "kv_store/gather_testing.h"

namespace sparsekv::kv_store {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using State = GatherClient::State;
using Ticket = GatherClient::Ticket;

constexpr RowLayout kLayout = {.layers = 3, .kv_heads = 2, .head_dim = 16, .blocks = 24};
constexpr uint64_t kOwner = 77;
constexpr uint32_t kTokens = 8 * kBlockTokens - 20;

steady_clock::time_point In(milliseconds time) { return steady_clock::now() + time; }
steady_clock::time_point Soon() { return In(std::chrono::seconds(60)); }  // on a busy machine

class Gather : public testing::Test {
 protected:
  void Start(uint32_t threads, uint32_t slots) {
    segment_ = SegmentClient::MakeLocal(kLayout, kTestFingerprint);
    EXPECT_EQ(segment_->gather(), nullptr);
    segment_->StartLocalGather(threads,
                               slots * GatherGeometry::Of(kLayout.row_bytes(), 0).slot_bytes());
    gather_ = segment_->gather();
    grant_ = *segment_->Grant(kTokens, kOwner);
    WriteSequence(*segment_, grant_, kOwner, kTokens);
  }
  std::vector<RowRef> RandomRows(size_t count) {
    std::vector<RowRef> rows;
    for (size_t i = 0; i < count; ++i) {
      rows.push_back(RefOf(grant_, static_cast<uint32_t>(random_() % kLayout.kv_heads),
                           static_cast<uint32_t>(random_() % kTokens)));
    }
    return rows;
  }
  // Bit for bit what a direct read gives.
  void ExpectRows(Ticket ticket, uint32_t layer, const std::vector<RowRef>& rows) {
    for (size_t i = 0; i < rows.size(); ++i) {
      const std::byte* direct = segment_->rows() + kLayout.BlockOffset(layer, rows[i].block) +
                                kLayout.RowOffset(rows[i].kv_head, rows[i].token);
      ASSERT_EQ(
          std::memcmp(gather_->Rows(ticket) + i * kLayout.row_bytes(), direct, kLayout.row_bytes()),
          0)
          << "row " << i << " of " << rows.size();
    }
  }

  std::mt19937 random_{1};
  std::unique_ptr<SegmentClient> segment_;
  GatherClient* gather_ = nullptr;
  BlockGrant grant_;
};

TEST_F(Gather, RandomRequestsEqualDirectReads) {
  for (uint32_t threads : {1, 3}) {
    Start(threads, 8);
    uint64_t rows_asked = 0;
    for (int round = 0; round < 300; ++round) {
      struct Asked {
        Ticket ticket;
        uint32_t layer;
        std::vector<RowRef> rows;
      };
      std::vector<Asked> asked;
      for (int i = 0; i < 8; ++i) {
        const uint32_t layer = static_cast<uint32_t>(random_() % kLayout.layers);
        std::vector<RowRef> rows = RandomRows(1 + random_() % gather_->max_rows());
        auto ticket = gather_->Post(layer, kOwner, rows);
        ASSERT_TRUE(ticket);
        rows_asked += rows.size();
        asked.push_back({*ticket, layer, std::move(rows)});
      }
      std::shuffle(asked.begin(), asked.end(), random_);
      for (const Asked& one : asked) {
        ASSERT_EQ(gather_->Wait(one.ticket, Soon()), State::kDone);
        ExpectRows(one.ticket, one.layer, one.rows);
        if (round % 2) gather_->Release(one.ticket);
      }
      if (round % 2 == 0) {
        for (const Asked& one : asked) gather_->Release(one.ticket);
      }
    }
    const GatherClient::Counters counters = gather_->counters();
    EXPECT_EQ(counters.posted, 2400u);
    EXPECT_EQ(counters.done, 2400u);
    EXPECT_EQ(counters.rows, rows_asked);
    EXPECT_EQ(counters.expired + counters.refused + counters.gone + counters.turned_away, 0u);
  }
}

}  // namespace
}  // namespace sparsekv::kv_store
