#include "coordinator/scheduler.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "base/limits.h"

namespace sparsekv {
namespace {

WorkerCapacity Capacity(uint32_t blocks, uint32_t pages, uint32_t slots) {
  return {.ready = true,
          .blocks_total = blocks,
          .blocks_free = blocks,
          .label_pages_total = pages,
          .label_pages_free = pages,
          .slots_free = slots};
}

TEST(NeedOf, RoundsUpToBlocks) {
  EXPECT_EQ(NeedOf(1, false).host_blocks, 1u);
  EXPECT_EQ(NeedOf(64, false).host_blocks, 1u);
  EXPECT_EQ(NeedOf(65, true).host_blocks, 2u);
  EXPECT_EQ(NeedOf(65, true).label_pages, 2u);
  EXPECT_EQ(NeedOf(65, false).label_pages, 0u);
  EXPECT_EQ(NeedOf(UINT32_MAX, false).host_blocks, 1u << 26);
}

TEST(Schedule, NobodyPassesTheOneThatWaits) {
  const std::deque<Waiting> queue = {{1, {4, 0}}, {2, {9, 0}}, {3, {1, 0}}};
  const auto placements = Schedule(queue, {Capacity(10, 0, 8)});
  ASSERT_EQ(placements.size(), 1u);
  EXPECT_EQ(placements[0].key, 1u);
}

TEST(Schedule, SpreadsOverWorkers) {
  const std::deque<Waiting> queue = {{1, {1, 1}}, {2, {1, 1}}, {3, {1, 1}}, {4, {1, 1}}};
  const auto placements = Schedule(queue, {Capacity(8, 8, 2), Capacity(8, 8, 2)});
  ASSERT_EQ(placements.size(), 4u);
  EXPECT_EQ(placements[0].worker, 0u);
  EXPECT_EQ(placements[1].worker, 1u);
  EXPECT_EQ(placements[2].worker, 0u);
  EXPECT_EQ(placements[3].worker, 1u);
}

TEST(Schedule, LeavesOutWorkersThatAreNotReady) {
  std::vector<WorkerCapacity> workers = {Capacity(8, 8, 8), Capacity(8, 8, 1)};
  workers[0].ready = false;
  const auto placements = Schedule({{1, {1, 1}}, {2, {1, 1}}}, workers);
  ASSERT_EQ(placements.size(), 1u);
  EXPECT_EQ(placements[0].worker, 1u);
}

TEST(Schedule, DenseSequencesNeedNoLabels) {
  EXPECT_EQ(Schedule({{1, NeedOf(100, false)}}, {Capacity(8, 0, 1)}).size(), 1u);
  EXPECT_EQ(Schedule({{1, NeedOf(100, true)}}, {Capacity(8, 0, 1)}).size(), 0u);
}

TEST(PrefillUnitTokens, AreMultiplesOfTheAlignment) {
  EXPECT_EQ(PrefillUnitTokens(false) % kPrefillAlign, 0u);
  EXPECT_EQ(PrefillUnitTokens(true) % kPrefillAlign, 0u);
  EXPECT_LT(PrefillUnitTokens(true), PrefillUnitTokens(false));
}

// Sequences arrive, run for a while and leave, at random. Nothing is ever over capacity; they start
// in the order of arrival; every one starts; and the queue's head waits only while it fits nowhere.
class RandomLoad : public ::testing::TestWithParam<int> {};

TEST_P(RandomLoad, KeepsCapacityOrderAndProgress) {
  std::mt19937 random(static_cast<unsigned>(GetParam()));
  std::vector<WorkerCapacity> workers;
  for (uint32_t i = 0; i < 1 + random() % 3; ++i) {
    workers.push_back(Capacity(4 + random() % 30, 4 + random() % 30, 1 + random() % 6));
  }
  struct Running {
    Need need;
    uint32_t worker;
  };
  std::map<uint64_t, Running> running;
  std::deque<Waiting> queue;
  uint64_t next = 1, started = 0;
  const auto give_back = [&](std::map<uint64_t, Running>::iterator ended) {
    WorkerCapacity& worker = workers[ended->second.worker];
    worker.blocks_free += ended->second.need.host_blocks;
    worker.label_pages_free += ended->second.need.label_pages;
    worker.slots_free += 1;
    running.erase(ended);
  };
  for (int turn = 0; turn < 2000; ++turn) {
    if (turn < 1500 && random() % 2) {
      const Need need = NeedOf(1 + random() % 1500, random() % 2);
      const bool fits = std::any_of(workers.begin(), workers.end(),
                                    [&](const auto& worker) { return CanEverFit(need, worker); });
      if (fits) queue.push_back({next++, need});
    }
    if (!running.empty() && random() % 2) {
      give_back(std::next(running.begin(), static_cast<long>(random() % running.size())));
    }
    for (const Placement& placement : Schedule(queue, workers)) {
      ASSERT_EQ(placement.key, ++started);
      const Need need = queue.front().need;
      ASSERT_EQ(queue.front().key, placement.key);
      queue.pop_front();
      WorkerCapacity& worker = workers[placement.worker];
      ASSERT_GE(worker.blocks_free, need.host_blocks);
      ASSERT_GE(worker.label_pages_free, need.label_pages);
      ASSERT_GE(worker.slots_free, 1u);
      worker.blocks_free -= need.host_blocks;
      worker.label_pages_free -= need.label_pages;
      worker.slots_free -= 1;
      running[placement.key] = {need, placement.worker};
    }
    ASSERT_TRUE(queue.empty() || !running.empty()) << "nothing runs, and yet something waits";
  }
  while (!running.empty() || !queue.empty()) {
    ASSERT_FALSE(running.empty());
    give_back(running.begin());
    for (const Placement& placement : Schedule(queue, workers)) {
      ASSERT_EQ(placement.key, ++started);
      WorkerCapacity& worker = workers[placement.worker];
      worker.blocks_free -= queue.front().need.host_blocks;
      worker.label_pages_free -= queue.front().need.label_pages;
      worker.slots_free -= 1;
      running[placement.key] = {queue.front().need, placement.worker};
      queue.pop_front();
    }
  }
  EXPECT_EQ(started, next - 1);
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomLoad, ::testing::Range(0, 20));

}  // namespace
}  // namespace sparsekv
