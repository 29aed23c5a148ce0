#include "coordinator/scheduler.h"

#include <gtest/gtest.h>

#include <array>
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

v1::Budget Rows(uint32_t rows) {
  v1::Budget budget;
  budget.set_rows(rows);
  return budget;
}

v1::Budget Fraction(uint32_t denominator) {
  v1::Budget budget;
  budget.set_fraction_denominator(denominator);
  return budget;
}

Need Dense(uint32_t tokens) { return NeedOf(tokens, false, {}); }
Need Sparse(uint32_t tokens) { return NeedOf(tokens, true, Fraction(16)); }

TEST(NeedOf, RoundsUpToBlocks) {
  EXPECT_EQ(Dense(1).host_blocks, 1u);
  EXPECT_EQ(Dense(64).host_blocks, 1u);
  EXPECT_EQ(Sparse(65).host_blocks, 2u);
  EXPECT_EQ(Sparse(65).label_pages, 2u);
  EXPECT_EQ(Dense(65).label_pages, 0u);
  EXPECT_EQ(Dense(UINT32_MAX).host_blocks, 1u << 26);
}

TEST(NeedOf, LargestSelectionIsTheLastSteps) {
  EXPECT_EQ(NeedOf(16384, true, Fraction(16)).largest_selection, 1024u);
  EXPECT_EQ(NeedOf(16385, true, Fraction(16)).largest_selection, 1025u);
  EXPECT_EQ(NeedOf(16384, true, Rows(2048)).largest_selection, 2048u);
  EXPECT_EQ(NeedOf(1000, true, Rows(2048)).largest_selection, 1000u);  // never more than there are
  EXPECT_EQ(NeedOf(1000, true, Fraction(100)).largest_selection,
            69u);  // never less than always-set
  EXPECT_EQ(NeedOf(50, true, Rows(1)).largest_selection, 50u);
  EXPECT_EQ(NeedOf(1000, false, Rows(2048)).largest_selection, 0u);
}

// As worker.proto says under WorkerHello.device_row_blocks.
TEST(DeviceBlocks, AreWhatTheWorkerTakes) {
  WorkerCapacity worker{.row_blocks_total = 1000, .layers = 4, .hot_rows = 256};
  const Need sparse = NeedOf(8192, true, Rows(500));
  const auto resident = v1::PLACEMENT_RESIDENT, offload = v1::PLACEMENT_OFFLOAD;
  EXPECT_EQ(DeviceBlocks(sparse, worker, resident), 4u * 128);
  EXPECT_EQ(DeviceBlocks(sparse, worker, offload), 4u * 8);  // 500 rows, more than are hot
  EXPECT_EQ(DeviceBlocks(NeedOf(8192, true, Rows(100)), worker, offload), 4u * 4);  // 256 rows
  EXPECT_EQ(DeviceBlocks(Dense(8192), worker, resident), 4u * 128);
  EXPECT_EQ(DeviceBlocks(Dense(8192), worker, offload), 128u);  // layers in turn
  worker.hot_rows = 0;
  EXPECT_EQ(DeviceBlocks(sparse, worker, offload), 2u * 8);  // a double buffer
  worker.row_blocks_total = 0;
  EXPECT_EQ(DeviceBlocks(sparse, worker, resident), 0u);
  EXPECT_EQ(DeviceBlocks(Dense(1u << 24), {.row_blocks_total = 1, .layers = 1024}, resident),
            uint64_t{1} << 28);
}

std::vector<Admission> ScheduleAuto(const std::deque<Waiting>& queue,
                                    std::vector<WorkerCapacity> workers) {
  return Schedule(queue, std::move(workers), PlacementPolicy::kAuto);
}

TEST(Schedule, NobodyPassesTheOneThatWaits) {
  const std::deque<Waiting> queue = {{1, {4, 0}}, {2, {9, 0}}, {3, {1, 0}}};
  const auto admissions = ScheduleAuto(queue, {Capacity(10, 0, 8)});
  ASSERT_EQ(admissions.size(), 1u);
  EXPECT_EQ(admissions[0].key, 1u);
}

TEST(Schedule, SpreadsOverWorkers) {
  const std::deque<Waiting> queue = {{1, {1, 1}}, {2, {1, 1}}, {3, {1, 1}}, {4, {1, 1}}};
  const auto admissions = ScheduleAuto(queue, {Capacity(8, 8, 2), Capacity(8, 8, 2)});
  ASSERT_EQ(admissions.size(), 4u);
  for (uint32_t i = 0; i < 4; ++i) EXPECT_EQ(admissions[i].worker, i % 2);
}

TEST(Schedule, LeavesOutWorkersThatAreNotReady) {
  std::vector<WorkerCapacity> workers = {Capacity(8, 8, 8), Capacity(8, 8, 1)};
  workers[0].ready = false;
  const auto admissions = ScheduleAuto({{1, {1, 1}}, {2, {1, 1}}}, workers);
  ASSERT_EQ(admissions.size(), 1u);
  EXPECT_EQ(admissions[0].worker, 1u);
}

TEST(Schedule, DenseSequencesNeedNoLabels) {
  EXPECT_EQ(ScheduleAuto({{1, Dense(100)}}, {Capacity(8, 0, 1)}).size(), 1u);
  EXPECT_EQ(ScheduleAuto({{1, Sparse(100)}}, {Capacity(8, 0, 1)}).size(), 0u);
}

WorkerCapacity WithRowBlocks(uint64_t row_blocks, uint32_t layers, uint32_t hot_rows) {
  WorkerCapacity worker = Capacity(1000, 1000, 8);
  worker.row_blocks_total = worker.row_blocks_free = row_blocks;
  worker.layers = layers;
  worker.hot_rows = hot_rows;
  return worker;
}

TEST(Placement, AutoIsResidentWhileItFits) {
  // Resident takes 2 x 16 blocks, offload 2 x 2.
  const std::deque<Waiting> queue = {{1, Sparse(1024)}, {2, Sparse(1024)}, {3, Sparse(1024)}};
  const auto admissions = ScheduleAuto(queue, {WithRowBlocks(38, 2, 128)});
  ASSERT_EQ(admissions.size(), 2u) << "the third fits neither way";
  EXPECT_EQ(admissions[0].placement, v1::PLACEMENT_RESIDENT);
  EXPECT_EQ(admissions[0].row_blocks, 32u);
  EXPECT_EQ(admissions[1].placement, v1::PLACEMENT_OFFLOAD);
  EXPECT_EQ(admissions[1].row_blocks, 4u);
}

TEST(Placement, AutoPrefersAWorkerWhereItIsResident) {
  std::vector<WorkerCapacity> workers = {WithRowBlocks(8, 2, 128), WithRowBlocks(40, 2, 128)};
  workers[1].slots_free = 1;
  const auto admissions = ScheduleAuto({{1, Sparse(1024)}}, workers);
  ASSERT_EQ(admissions.size(), 1u);
  EXPECT_EQ(admissions[0].worker, 1u);
  EXPECT_EQ(admissions[0].placement, v1::PLACEMENT_RESIDENT);
}

TEST(Placement, ResidentWaitsForRoom) {
  const std::deque<Waiting> queue = {{1, Sparse(1024)}, {2, Sparse(1024)}};
  const auto admissions = Schedule(queue, {WithRowBlocks(63, 2, 128)}, PlacementPolicy::kResident);
  ASSERT_EQ(admissions.size(), 1u);
  EXPECT_EQ(admissions[0].placement, v1::PLACEMENT_RESIDENT);
}

TEST(Placement, OffloadIsNeverResident) {
  const auto admissions =
      Schedule({{1, Dense(1024)}}, {WithRowBlocks(1000, 2, 128)}, PlacementPolicy::kOffload);
  ASSERT_EQ(admissions.size(), 1u);
  EXPECT_EQ(admissions[0].placement, v1::PLACEMENT_OFFLOAD);
}

TEST(Placement, IsLeftOpenWhereRowBlocksAreNotCounted) {
  for (const auto policy : {PlacementPolicy::kAuto, PlacementPolicy::kResident}) {
    const auto admissions = Schedule({{1, Sparse(1024)}}, {WithRowBlocks(0, 2, 128)}, policy);
    ASSERT_EQ(admissions.size(), 1u);
    EXPECT_EQ(admissions[0].placement, v1::PLACEMENT_UNSPECIFIED);
  }
}

TEST(WhyNever, NamesBothNumbers) {
  const WorkerCapacity worker = WithRowBlocks(31, 2, 128);
  EXPECT_EQ(WhyNever(Sparse(1024), worker, PlacementPolicy::kAuto), "");
  EXPECT_EQ(WhyNever(Sparse(1024), worker, PlacementPolicy::kResident),
            "prompt + max_new_tokens need 32 row blocks of 64 tokens to be resident, "
            "device memory has 31");
  // Neither way: the lesser need is named.
  EXPECT_EQ(WhyNever(Sparse(1024), WithRowBlocks(3, 2, 128), PlacementPolicy::kAuto),
            "prompt + max_new_tokens need 4 row blocks of 64 tokens, device memory has 3");
  EXPECT_EQ(WhyNever(Dense(1 << 20), worker, PlacementPolicy::kAuto),
            "prompt + max_new_tokens need 16384 row blocks of 64 tokens, host memory has 1000");
}

TEST(PrefillUnitTokens, AreMultiplesOfTheAlignment) {
  EXPECT_EQ(PrefillUnitTokens(false) % kPrefillAlign, 0u);
  EXPECT_EQ(PrefillUnitTokens(true) % kPrefillAlign, 0u);
  EXPECT_LT(PrefillUnitTokens(true), PrefillUnitTokens(false));
}

// Sequences arrive, run for a while and leave, at random. Nothing is ever over capacity; they start
// in the order of arrival; every one starts; and the queue's head waits only while it fits nowhere.
class RandomLoad : public ::testing::TestWithParam<int> {
 protected:
  struct Running {
    Need need;
    Admission admission;
  };

  RandomLoad() : random_(static_cast<unsigned>(GetParam())) {
    policy_ = std::array{PlacementPolicy::kAuto, PlacementPolicy::kResident,
                         PlacementPolicy::kOffload}[Below(3)];
    for (uint32_t i = 0, count = 1 + Below(3); i < count; ++i) {
      workers_.push_back(Capacity(4 + Below(30), 4 + Below(30), 1 + Below(6)));
      workers_.back().layers = 1 + Below(4);
      workers_.back().hot_rows = Below(3) * 100;
      workers_.back().row_blocks_total = workers_.back().row_blocks_free = Below(4) * 40;
    }
  }

  uint32_t Below(uint32_t bound) { return static_cast<uint32_t>(random_() % bound); }

  void Arrive() {
    const Need need = NeedOf(1 + Below(1500), Below(2), Rows(1 + Below(400)));
    const bool fits = std::any_of(workers_.begin(), workers_.end(), [&](const auto& worker) {
      return WhyNever(need, worker, policy_).empty();
    });
    if (fits) queue_.push_back({next_++, need});
  }

  void Leave() {
    const auto ended = std::next(running_.begin(), Below(static_cast<uint32_t>(running_.size())));
    const auto& [need, admission] = ended->second;
    WorkerCapacity& worker = workers_[admission.worker];
    worker.blocks_free += need.host_blocks;
    worker.label_pages_free += need.label_pages;
    worker.row_blocks_free += admission.row_blocks;
    worker.slots_free += 1;
    running_.erase(ended);
  }

  void Start() {
    for (const Admission& admission : Schedule(queue_, workers_, policy_)) {
      ASSERT_EQ(admission.key, ++started_);
      ASSERT_EQ(queue_.front().key, admission.key);
      const Need need = queue_.front().need;
      queue_.pop_front();
      WorkerCapacity& worker = workers_[admission.worker];
      ASSERT_EQ(admission.row_blocks, DeviceBlocks(need, worker, admission.placement));
      ASSERT_GE(worker.blocks_free, need.host_blocks);
      ASSERT_GE(worker.label_pages_free, need.label_pages);
      ASSERT_GE(worker.row_blocks_free, admission.row_blocks);
      ASSERT_GE(worker.slots_free, 1u);
      worker.blocks_free -= need.host_blocks;
      worker.label_pages_free -= need.label_pages;
      worker.row_blocks_free -= admission.row_blocks;
      worker.slots_free -= 1;
      running_[admission.key] = {need, admission};
      ++placed_[admission.placement];
    }
    ASSERT_TRUE(queue_.empty() || !running_.empty()) << "nothing runs, and yet something waits";
  }

  std::mt19937 random_;
  PlacementPolicy policy_;
  std::vector<WorkerCapacity> workers_;
  std::map<uint64_t, Running> running_;
  std::deque<Waiting> queue_;
  uint64_t next_ = 1, started_ = 0;
  std::map<v1::Placement, int> placed_;
};

TEST_P(RandomLoad, KeepsCapacityOrderAndProgress) {
  for (int turn = 0; turn < 2000; ++turn) {
    if (turn < 1500 && Below(2)) Arrive();
    if (!running_.empty() && Below(2)) Leave();
    ASSERT_NO_FATAL_FAILURE(Start());
  }
  while (!running_.empty()) {
    Leave();
    ASSERT_NO_FATAL_FAILURE(Start());
  }
  EXPECT_EQ(started_, next_ - 1);
  EXPECT_EQ(policy_ == PlacementPolicy::kResident ? placed_[v1::PLACEMENT_OFFLOAD] : 0, 0);
  EXPECT_EQ(policy_ == PlacementPolicy::kOffload ? placed_[v1::PLACEMENT_RESIDENT] : 0, 0);
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomLoad, ::testing::Range(0, 40));

}  // namespace
}  // namespace sparsekv
