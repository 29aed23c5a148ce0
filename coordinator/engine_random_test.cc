// Random histories of one engine: clients come, leave and wait, workers and the store die and
// return.
#include <random>

#include "coordinator/engine_fixture.h"

namespace sparsekv {
namespace {

class RandomHistory : public ::testing::TestWithParam<int> {
 protected:
  RandomHistory()
      : random_(static_cast<unsigned>(GetParam())),
        f_(1 + Below(3), 24, std::chrono::seconds(30),
           OneIn(2) ? PlacementPolicy::kAuto : PlacementPolicy::kResident) {
    const uint32_t row_blocks = OneIn(3) ? 0 : 18 + Below(20);  // a resident request takes 3 to 18
    for (auto& worker : f_.workers) {
      worker->hello.set_device_row_blocks(row_blocks);
      worker->hello.set_hot_rows(128);
    }
  }

  uint32_t Below(uint32_t bound) { return static_cast<uint32_t>(random_() % bound); }
  bool OneIn(uint32_t n) { return Below(n) == 0; }

  void Submit() {
    auto request = EngineFixture::Request(std::string(1 + Below(300), 'p'), 1 + Below(60));
    if (OneIn(3)) request.set_attention(v1::ATTENTION_DENSE);
    if (OneIn(4)) request.add_stop(OneIn(2) ? "fg" : "k");
    clients_.push_back(f_.Submit(request));
  }

  void Turn() {
    if (OneIn(3)) Submit();
    if (OneIn(15) && !clients_.empty()) {
      f_.engine->Cancel(clients_[Below(static_cast<uint32_t>(clients_.size()))].key,
                        absl::CancelledError("left"));
    }
    for (auto& worker : f_.workers) {
      if (!worker->up()) {
        if (OneIn(5)) worker->Up(++f_.boots);
      } else if (OneIn(60)) {
        worker->Down();
      } else if (OneIn(2)) {
        worker->Step(/*tokens=*/!OneIn(4));
      }
    }
    if (!f_.store->up()) {
      if (OneIn(5)) f_.store->Up();
    } else if (OneIn(60)) {
      f_.store->Down(/*done=*/OneIn(2));
    } else if (OneIn(2)) {
      f_.store->Deliver();
    }
    if (OneIn(2)) f_.Poll();
  }

  // Everything comes back and nothing new happens: whatever is left must end.
  void Quiesce() {
    if (!f_.store->up()) f_.store->Up();
    for (auto& worker : f_.workers) {
      if (!worker->up()) worker->Up(++f_.boots);
    }
    for (int i = 0; i < 20000 && !AllDone(); ++i) f_.Step();
    for (int i = 0; i < 3; ++i) f_.Step();
  }
  bool AllDone() const {
    return std::all_of(clients_.begin(), clients_.end(),
                       [](const auto& client) { return client->done(); });
  }

  std::mt19937 random_;
  EngineFixture f_;
  std::vector<EngineFixture::Client> clients_;
};

// What an undisturbed run would have given.
std::string Expected(uint32_t tokens, const std::string& stop) {
  std::string text;
  for (uint32_t i = 0; i < tokens; ++i) text += static_cast<char>('a' + i % 26);
  return stop.empty() ? text : text.substr(0, text.find(stop));
}

TEST_P(RandomHistory, EveryRequestEndsOnceAndEverythingIsGivenBack) {
  for (int turn = 0; turn < 1500; ++turn) Turn();
  Quiesce();
  int completed = 0;
  for (const auto& client : clients_) {
    ASSERT_EQ(client->finishes, 1);
    const auto& all = client->all;
    if (!client->status.ok()) {
      EXPECT_TRUE(absl::IsCancelled(client->status) || absl::IsUnavailable(client->status))
          << client->status;
      continue;
    }
    ++completed;
    EXPECT_EQ(all.text(), Expected(all.usage().completion_tokens(), all.stop_string()));
    EXPECT_EQ(all.token_ids_size(), static_cast<int>(all.usage().completion_tokens()));
  }
  EXPECT_GT(completed, 20);
  EXPECT_TRUE(f_.AllBlocksFree());
  for (auto& worker : f_.workers) EXPECT_TRUE(worker->live().empty());
  f_.engine->UpdateGauges();
  EXPECT_EQ(f_.metrics.requests_running.Value(), 0);
  EXPECT_EQ(f_.metrics.requests_waiting.Value(), 0);
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomHistory, ::testing::Range(0, 30));

}  // namespace
}  // namespace sparsekv
