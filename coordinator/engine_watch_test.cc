// What keeps workers going, and what becomes of one that does not.
#include <thread>

#include "base/limits.h"
#include "coordinator/engine.h"
#include "coordinator/engine_fixture.h"

namespace sparsekv {
namespace {

using Fixture = EngineFixture;

TEST(Engine, AUsedUpPlanIsFollowedByAnotherWhateverIsStillBeingSent) {
  Fixture f;
  f.Begin();
  f.Submit(Fixture::Request("p", 50));
  f.Step();
  f.workers[0]->unsent_plans = 1;
  const size_t plans = f.workers[0]->plans_sent.size();
  v1::Report half;
  half.mutable_stats()->set_steps(kPlanSteps / 2);
  f.workers[0]->Report(half);
  f.Settle();
  EXPECT_EQ(f.workers[0]->plans_sent.size(), plans);  // one is on its way
  v1::Report whole;
  whole.mutable_stats()->set_steps(kPlanSteps / 2);
  whole.mutable_stats()->set_plan_exhausted(true);
  f.workers[0]->Report(whole);
  f.Settle();
  EXPECT_EQ(f.workers[0]->plans_sent.size(), plans + 1);
}

TEST(Engine, AWorkerThatIsSilentUnderWorkIsKilledOnceALease) {
  Fixture f(1, 16, std::chrono::milliseconds(100));
  f.workers[0]->hello.set_pid(4242);
  f.Begin();
  const auto wait = [&f](int ms) {
    std::this_thread::sleep_for(std::chrono::milliseconds(ms));
    f.Settle();
  };
  wait(150);
  EXPECT_TRUE(f.killed.empty()) << "an idle worker has nothing to say";
  f.Submit(Fixture::Request("p", 50));
  f.Settle();
  wait(30);
  EXPECT_TRUE(f.killed.empty()) << "its silence counts from the plan";
  wait(120);
  EXPECT_EQ(f.killed, std::vector<int64_t>{4242});
  wait(20);
  EXPECT_EQ(f.killed.size(), 1u);
}

}  // namespace
}  // namespace sparsekv
