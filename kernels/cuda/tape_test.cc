// The tape on a runtime without a device (fake_runtime.h): what is a step's shape, which graph runs
// it, that lanes are joined where they must be, and that nothing is taken after the start.
#include "kernels/cuda/tape.h"

#include <gtest/gtest.h>

#include <random>

#include "kernels/cuda/fake_runtime.h"

namespace sparsekv::cuda {
namespace {

// acc = acc * 31 + values[0..count): its result tells the order of everything that touched acc.
void Fold(const uint32_t* values, uint32_t count, uint32_t* acc) {
  for (uint32_t i = 0; i < count; ++i) *acc = *acc * 31 + values[i];
}
void Join(const uint32_t* from, uint32_t* acc) { *acc = *acc * 31 + *from; }
void Nothing() {}

class TapeTest : public testing::Test {
 protected:
  TapeTest() {
    fake::Kernel(Fold);
    fake::Kernel(Join);
    fake::Kernel(Nothing);
    fake::Fail(nullptr);
    std::memset(acc_, 0, sizeof(acc_));
  }

  // One decode step: folds the values into a lane's accumulator, and fetches it.
  uint32_t Step(Tape& tape, std::vector<uint32_t> values, uint32_t grid = 1, int lane = 0) {
    tape.Begin(StepKind::kDecode);
    tape.UseLane(static_cast<Lane>(lane));
    acc_[lane] = 0;
    tape.Launch(Fold, dim3(grid), dim3(32), 0, tape.Params(values),
                static_cast<uint32_t>(values.size()), &acc_[lane]);
    uint32_t seen = 77;
    tape.Fetch(&seen, &acc_[lane], sizeof(seen));
    EXPECT_EQ(seen, 77u);
    tape.Finish();
    return seen;
  }

  uint32_t acc_[kLanes];
};

TEST_F(TapeTest, OneShapeIsOneGraphWhateverItsParameters) {
  Tape tape(true);
  for (uint32_t i = 0; i < 50; ++i) EXPECT_EQ(Step(tape, {i, 2 * i}), i * 31 + 2 * i);
  EXPECT_EQ(tape.statistics().graphs_made, 1u);
  EXPECT_EQ(tape.statistics().graph_steps, 50u);
  EXPECT_EQ(tape.statistics().decode.steps, 50u);
  EXPECT_EQ(fake::statistics().live_graphs, 1u);
}

TEST_F(TapeTest, WhatIsNotAParameterIsAnotherGraph) {
  Tape tape(true);
  Step(tape, {1, 2});
  Step(tape, {1, 2, 3});     // more parameters, and another argument by value
  Step(tape, {1, 2}, 2);     // another grid
  Step(tape, {1, 2}, 1, 1);  // another lane, and another address
  EXPECT_EQ(tape.statistics().graphs_made, 4u);
  auto with = [&](uint8_t byte, bool wait) {
    tape.Begin(StepKind::kDecode);
    const uint32_t mark = tape.Mark();
    tape.UseLane(Lane::kPredict);
    tape.Fill(acc_, byte, 4);
    if (wait) tape.WaitFor(mark);
    tape.Finish();
  };
  with(1, false);
  with(2, false);
  with(1, true);
  EXPECT_EQ(tape.statistics().graphs_made, 7u);
  with(2, false);
  Step(tape, {3, 4}, 2);
  EXPECT_EQ(tape.statistics().graphs_made, 7u);
  for (uint32_t* to : {acc_ + 1, acc_ + 2, acc_ + 1}) {  // nothing but an argument by value
    tape.Begin(StepKind::kDecode);
    tape.Launch(Join, dim3(1), dim3(1), 0, static_cast<const uint32_t*>(acc_), to);
    tape.Finish();
  }
  EXPECT_EQ(tape.statistics().graphs_made, 9u);
}

// A wait for what the lane, or one that it waited for, has waited for already is none.
TEST_F(TapeTest, AWaitThatFollowsFromOthersIsNone) {
  Tape tape(true);
  auto with = [&](bool own, bool through, bool earlier) {
    tape.Begin(StepKind::kDecode);
    tape.Fill(acc_, 1, 4);
    const uint32_t first = tape.Mark();
    const uint32_t second = tape.Mark();
    if (own) tape.WaitFor(first);
    tape.UseLane(Lane::kPredict);
    tape.WaitFor(second);
    if (earlier) tape.WaitFor(first);
    tape.Fill(acc_ + 1, 1, 4);
    const uint32_t third = tape.Mark();
    tape.UseLane(Lane::kKeep);
    tape.WaitFor(third);
    if (through) tape.WaitFor(second);
    tape.Fill(acc_ + 2, 1, 4);
    tape.Finish();
  };
  for (int i = 0; i < 8; ++i) with(i & 1, i & 2, i & 4);
  EXPECT_EQ(tape.statistics().graphs_made, 1u);
}

TEST_F(TapeTest, TheGraphUsedLongestAgoGoes) {
  Tape tape(true);
  const auto most = static_cast<uint32_t>(Tape::kMostGraphs);
  for (uint32_t grid = 1; grid <= most; ++grid) Step(tape, {1}, grid);
  Step(tape, {1}, 1);  // used again: 2 is the oldest now
  Step(tape, {1}, most + 1);
  EXPECT_EQ(fake::statistics().live_graphs, Tape::kMostGraphs);
  EXPECT_EQ(tape.statistics().graphs_made, most + 1u);
  Step(tape, {1}, 1);
  EXPECT_EQ(tape.statistics().graphs_made, most + 1u);
  EXPECT_EQ(Step(tape, {5}, 2), 5u);
  EXPECT_EQ(tape.statistics().graphs_made, most + 2u);
}

// Random steps over all lanes, whose result depends on every edge.
void Note(Tape& tape, uint64_t shape, uint64_t values, uint32_t* acc, bool edges = true) {
  std::mt19937_64 random(shape), value(values);
  tape.Begin(StepKind::kDecode);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (lane > 0) tape.UseLane(static_cast<Lane>(lane));
    tape.Fill(acc + lane, 0, sizeof(*acc));
  }
  for (int i = 0; i < 20; ++i) {
    const auto from = static_cast<uint32_t>(random() % kLanes);
    const auto to = static_cast<uint32_t>(random() % kLanes);
    const std::vector<uint32_t> in = {static_cast<uint32_t>(value()),
                                      static_cast<uint32_t>(value())};
    tape.UseLane(static_cast<Lane>(from));
    tape.Launch(Fold, dim3(1), dim3(1), 0, tape.Params(in), 2u, acc + from);
    if (from == to) continue;
    const uint32_t made = tape.Mark();
    tape.UseLane(static_cast<Lane>(to));
    if (edges) tape.WaitFor(made);
    tape.Launch(Join, dim3(1), dim3(1), 0, static_cast<const uint32_t*>(acc + from), acc + to);
    const uint32_t read = tape.Mark();
    tape.UseLane(static_cast<Lane>(from));  // which must not go on before it was read
    if (edges) tape.WaitFor(read);
  }
}

std::vector<uint32_t> Outcome(Tape& tape, uint64_t shape, uint64_t values, uint64_t order,
                              bool edges = true) {
  static uint32_t acc[kLanes];
  fake::Seed(order);
  Note(tape, shape, values, acc, edges);
  tape.Finish();
  return {acc, acc + kLanes};
}

TEST_F(TapeTest, GraphsOnEqualsOffInEveryOrder) {
  Tape with(true), without(false);
  for (uint64_t shape = 0; shape < 20; ++shape) {
    for (uint64_t values = 0; values < 4; ++values) {
      const auto expected = Outcome(without, shape, values, 1);
      for (uint64_t order = 2; order < 6; ++order) {
        EXPECT_EQ(Outcome(with, shape, values, order), expected);
        EXPECT_EQ(Outcome(without, shape, values, order), expected);
      }
    }
  }
  EXPECT_EQ(with.statistics().graphs_made, 20u);
  EXPECT_EQ(without.statistics().graphs_made, 0u);
}

// Early launch and clusters do not get into each other's way, and another size is another graph.
TEST_F(TapeTest, KernelsInClusters) {
  Tape tape(true);
  const auto run = [&](uint32_t ctas) {
    const std::vector<uint32_t> values = {1, 2};
    tape.Begin(StepKind::kDecode);
    uint32_t* const acc = acc_;
    const auto* in = tape.Params(values);
    for (int i = 0; i < 2; ++i) {
      tape.LaunchClusters(ctas, Fold, dim3(4), dim3(1), 0, in, 2u, acc);
    }
    tape.Finish();
  };
  const auto counted = [](size_t fake::Statistics::*count) { return fake::statistics().*count; };
  const size_t clusters = counted(&fake::Statistics::cluster_launches);
  const size_t early = counted(&fake::Statistics::early_launches);
  run(1);
  EXPECT_EQ(counted(&fake::Statistics::cluster_launches) - clusters, 0u);
  EXPECT_EQ(counted(&fake::Statistics::early_launches) - early, 1u);
  run(2);
  EXPECT_EQ(counted(&fake::Statistics::cluster_launches) - clusters, 2u);
  EXPECT_EQ(counted(&fake::Statistics::early_launches) - early, 2u);
  EXPECT_EQ(tape.statistics().graphs_made, 2u);
}

TEST_F(TapeTest, WhatRunsBesideTheStepGoesFirst) {
  for (bool graphs : {true, false}) {
    Tape tape(graphs);
    for (Lane lane : {Lane::kCompute, Lane::kPredict, Lane::kPrefetch, Lane::kKeep}) {
      Step(tape, {1, 2}, 1, static_cast<int>(lane));
      EXPECT_EQ(fake::statistics().last_priority,
                lane == Lane::kCompute ? fake::kLeastPriority : fake::kGreatestPriority);
    }
  }
}

TEST_F(TapeTest, AKernelIsEarlyOnlyAfterAKernelAlone) {
  const auto early = [&](Tape& tape, bool between, StepKind kind) {
    const size_t before = fake::statistics().early_launches;
    tape.Begin(kind);
    const std::vector<uint32_t> values = {1, 2};
    const auto fold = [&](Lane lane) {
      tape.UseLane(lane);
      tape.Launch(Fold, dim3(1), dim3(1), 0, tape.Params(values), 2u,
                  acc_ + static_cast<int>(lane));
    };
    fold(Lane::kCompute);  // follows the parameters
    fold(Lane::kCompute);  // early
    const uint32_t mark = tape.Mark();
    fold(Lane::kCompute);  // early: a mark is nothing to wait for
    fold(Lane::kPredict);  // the lane's first
    if (between) tape.WaitFor(mark);
    fold(Lane::kPredict);  // early, unless it waits
    if (between) tape.Fill(acc_, 0, sizeof(acc_));
    fold(Lane::kPredict);
    tape.Finish();
    return fake::statistics().early_launches - before;
  };
  Tape tape(true), off(true, false);
  for (StepKind kind : {StepKind::kDecode, StepKind::kPrompt}) {
    EXPECT_EQ(early(tape, false, kind), 4u);
    EXPECT_EQ(early(tape, true, kind), 2u);
    EXPECT_EQ(early(off, false, kind), 0u);
  }
}

TEST_F(TapeTest, AForgottenEdgeShows) {
  Tape tape(false);
  size_t differ = 0;
  for (uint64_t order = 0; order < 20; ++order) {
    differ += Outcome(tape, 3, 1, order, false) != Outcome(tape, 3, 1, 1, false);
  }
  EXPECT_GT(differ, 0u);
}

TEST_F(TapeTest, NothingIsTakenAfterTheStart) {
  {
    Tape tape(true);
    tape.ReserveScratch(1 << 20);
    Step(tape, {1});
    const size_t allocations = fake::statistics().allocations;
    const size_t live = fake::statistics().live_allocations;
    for (uint32_t i = 1; i <= 64; ++i) {
      tape.Begin(StepKind::kDecode);
      std::byte* scratch = tape.Scratch(i << 14);
      EXPECT_EQ(tape.Scratch(1), scratch);
      tape.Launch(Nothing, dim3(i), dim3(1), i << 10);
      tape.Finish();
    }
    EXPECT_EQ(fake::statistics().allocations, allocations);
    EXPECT_EQ(fake::statistics().most_dynamic_shared_bytes, 64u << 10);
    // More than was reserved: the old memory stays until the step that was given it is over.
    tape.Begin(StepKind::kDecode);
    std::byte* old = tape.Scratch(1);
    std::byte* grown = tape.Scratch(2 << 20);
    EXPECT_NE(grown, old);
    old[0] = std::byte{1};
    EXPECT_EQ(fake::statistics().live_allocations, live + 1);
    tape.Finish();
    EXPECT_EQ(fake::statistics().live_allocations, live);
  }
  EXPECT_EQ(fake::statistics().live_allocations, 0u);
  EXPECT_EQ(fake::statistics().live_graphs, 0u);
}

TEST_F(TapeTest, APromptIsNeverAGraph) {
  Tape tape(true);
  int called = 0, progress = 0;
  tape.set_progress([&] { ++progress; });
  tape.Begin(StepKind::kPrompt);
  tape.Call([&](cudaStream_t) { ++called; });
  tape.Launch(Nothing, dim3(1), dim3(1), 0);
  EXPECT_EQ(called, 0);
  tape.Finish();
  EXPECT_EQ(called, 1);
  EXPECT_EQ(tape.statistics().graphs_made, 0u);
  tape.Begin(StepKind::kDecode);
  EXPECT_DEATH(tape.Call([](cudaStream_t) {}), "");
}

TEST_F(TapeTest, TooManyParametersAbort) {
  Tape tape(true);
  const std::vector<std::byte> most(Tape::kParamBytes + 1);
  EXPECT_DEATH(tape.Params(most), "33554433");
}

TEST_F(TapeTest, ADeviceErrorEndsTheProcessWithItsOwnCode) {
  Tape tape(true);
  for (const char* call : {"cudaMemcpyAsync", "cudaLaunchKernelExC", "cudaStreamSynchronize",
                           "cudaGraphInstantiate", "cudaMalloc"}) {
    EXPECT_EXIT(
        {
          fake::Fail(call);
          tape.Scratch(1 << 20);
          Step(tape, {1});
        },
        testing::ExitedWithCode(kDeviceErrorExit), "sparsekv: cuda: the fake was told to fail")
        << call;
  }
}

}  // namespace
}  // namespace sparsekv::cuda
