// Device row blocks through the engine: what a start says, what waits, what is given back.
#include "coordinator/engine.h"
#include "coordinator/engine_fixture.h"

namespace sparsekv {
namespace {

class PlacementFixture : public EngineFixture {
 public:
  explicit PlacementFixture(PlacementPolicy policy, uint32_t row_blocks)
      : EngineFixture(1, 64, std::chrono::seconds(30), policy) {
    workers[0]->hello.mutable_model()->set_layers(2);
    workers[0]->hello.set_device_row_blocks(row_blocks);
    workers[0]->hello.set_hot_rows(128);
    Begin();
  }
  // Resident takes 2 x 8 row blocks, offload 2 x 2.
  Client SubmitOne() { return Submit(Request(std::string(500, 'p'), 12)); }
  v1::Placement PlacementOf(const Client& client) const {
    const auto found = workers[0]->live().find(client.key);
    return found == workers[0]->live().end() ? v1::PLACEMENT_UNSPECIFIED
                                             : found->second.start.placement();
  }
};

TEST(EnginePlacement, AutoFillsTheDeviceAndThenTheSegment) {
  PlacementFixture f(PlacementPolicy::kAuto, 24);
  std::vector<EngineFixture::Client> clients;
  for (int i = 0; i < 4; ++i) clients.push_back(f.SubmitOne());
  f.Step();
  EXPECT_EQ(f.PlacementOf(clients[0]), v1::PLACEMENT_RESIDENT);
  EXPECT_EQ(f.PlacementOf(clients[1]), v1::PLACEMENT_OFFLOAD);
  EXPECT_EQ(f.PlacementOf(clients[2]), v1::PLACEMENT_OFFLOAD);
  EXPECT_FALSE(f.workers[0]->live().contains(clients[3].key)) << "24 blocks are taken";
  f.Cancel(clients[0]);  // as soon as the worker has ended it, its blocks are there
  for (int i = 0; i < 3; ++i) f.Step();
  EXPECT_EQ(f.PlacementOf(clients[3]), v1::PLACEMENT_RESIDENT);
}

TEST(EnginePlacement, ResidentWaitsAndComesWhenTheOneBeforeHasEnded) {
  PlacementFixture f(PlacementPolicy::kResident, 31);
  const auto first = f.SubmitOne();
  const auto second = f.SubmitOne();
  f.Step();
  EXPECT_EQ(f.PlacementOf(first), v1::PLACEMENT_RESIDENT);
  EXPECT_FALSE(second->done());
  for (int i = 0; i < 30; ++i) f.Step();
  EXPECT_TRUE(first->done() && first->status.ok());
  EXPECT_TRUE(second->done() && second->status.ok());
  EXPECT_TRUE(f.AllBlocksFree());
}

TEST(EnginePlacement, ResidentThatCanNeverFitIsRefusedAtOnce) {
  PlacementFixture f(PlacementPolicy::kResident, 15);
  const auto client = f.SubmitOne();
  f.Settle();
  EXPECT_TRUE(absl::IsResourceExhausted(client->status));
  EXPECT_EQ(std::string(client->status.message()),
            "prompt + max_new_tokens need 16 row blocks of 64 tokens to be resident, "
            "device memory has 15");
}

TEST(EnginePlacement, AWorkerThatDiedHoldsNoRowBlocks) {
  PlacementFixture f(PlacementPolicy::kResident, 16);
  const auto running = f.SubmitOne();
  f.Step();
  f.workers[0]->Down();
  const auto next = f.SubmitOne();
  f.workers[0]->Up(++f.boots);
  f.Step();
  EXPECT_TRUE(absl::IsUnavailable(running->status));
  EXPECT_EQ(f.PlacementOf(next), v1::PLACEMENT_RESIDENT);
}

}  // namespace
}  // namespace sparsekv
