// The coordinator admits what the worker then takes: two folders that may not include each other
// count the same device rows.
#include <gtest/gtest.h>

#include <random>

#include "coordinator/scheduler.h"
#include "gpu_worker/budget.h"
#include "gpu_worker/device_rows.h"

namespace sparsekv {
namespace {

TEST(AdmissionTest, CoordinatorAndWorkerCountTheSameRowBlocks) {
  std::mt19937 random(3);
  auto between = [&](uint32_t low, uint32_t high) {
    return static_cast<uint32_t>(low + random() % (high - low + 1));
  };
  size_t too_large = 0;
  for (int i = 0; i < 5000; ++i) {
    const uint32_t tokens = between(1, i % 2 ? 500 : 200000);
    RowBudget budget;
    if (i % 3 == 1) budget.rows = between(1, 2 * tokens);
    if (i % 3 == 2) budget.denominator = between(1, 64);
    v1::Budget asked;
    if (budget.rows) asked.set_rows(budget.rows);
    if (budget.denominator) asked.set_fraction_denominator(budget.denominator);
    const WorkerCapacity worker{.row_blocks_total = 1,
                                .layers = between(1, 80),
                                .hot_rows = between(0, 1) ? between(1, 70000) : 0u};
    const Need need = NeedOf(tokens, !budget.dense(), asked);
    const uint32_t selection = budget.dense() ? 0 : budget.At(tokens);
    ASSERT_EQ(need.largest_selection, selection);
    EXPECT_EQ(DeviceBlocks(need, worker, v1::PLACEMENT_RESIDENT),
              DeviceRows::NeedOf(worker.layers, worker.hot_rows, RowPlacement::kResident, tokens,
                                 selection)
                  .blocks());
    const uint64_t offloaded = DeviceBlocks(need, worker, v1::PLACEMENT_OFFLOAD);
    if (selection > DeviceRows::kMostSelected) {
      ++too_large;
      EXPECT_EQ(offloaded, UINT64_MAX);  // never admitted; the worker would refuse it
      continue;
    }
    EXPECT_EQ(offloaded, DeviceRows::NeedOf(worker.layers, worker.hot_rows, RowPlacement::kOffload,
                                            tokens, selection)
                             .blocks());
  }
  EXPECT_GT(too_large, 0u);
}

}  // namespace
}  // namespace sparsekv
