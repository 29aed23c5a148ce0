// The worker's loop with a local segment and a sink that collects: every sequence that was started
// ends exactly once, whatever the plans do.
#include "gpu_worker/step_loop.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "gpu_worker/local_runner.h"
#include "gpu_worker/random_checkpoint.h"
#include "kernels/fake_device.h"

namespace sparsekv {
namespace {

class CollectingSink : public ReportSink {
 public:
  void Send(uint64_t session, v1::Report report) override {
    std::lock_guard lock(mutex_);
    reports_.emplace_back(session, std::move(report));
    changed_.notify_all();
  }

  // Waits until `done` holds of all reports so far; fails after ten seconds.
  using Reports = std::vector<std::pair<uint64_t, v1::Report>>;
  void WaitFor(const std::function<bool(const Reports&)>& done) {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, std::chrono::seconds(60), [&] { return done(reports_); }));
  }
  Reports Snapshot() {
    std::lock_guard lock(mutex_);
    return reports_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  Reports reports_;
};

constexpr uint32_t kBlocks = 48;

// Where rows are attended: in the segment, by the cpu; or on a device of its own, which holds all
// of them or brings what is selected.
enum class Where { kSegment, kResident, kOffload };

class StepLoopTest : public testing::TestWithParam<Where> {
 protected:
  StepLoopTest() {
    segment_ = kv_store::SegmentClient::MakeLocal(files_.Layout(kBlocks), 1);
    Device::Options options{.device_bytes = size_t{64} << 20,
                            .max_batch = 4,
                            .prefill_unit_tokens = 256,
                            .threads = 1,
                            .row_layout = segment_->layout(),
                            .row_pool = segment_->rows()};
    if (GetParam() != Where::kSegment) {
      options.device_bytes = size_t{1} << 30;
      options.backend = BackendKind::kCuda;
      options.make_backend = [] {
        return std::make_unique<FakeDevice>(MakeCpuBackend(1),
                                            FakeDevice::Options{.bytes = size_t{1} << 30});
      };
      options.share_chunk_bytes = 64 << 10;
      options.rows = {.in_place = false, .hot_rows = 100, .predict = true};
    }
    auto device = Device::Make(files_, options);
    EXPECT_TRUE(device.ok()) << device.status();
    device_ = *std::move(device);
    thread_ = std::thread([this] {
      StepLoop loop({.device = &device_,
                     .segment = segment_.get(),
                     .inbox = &inbox_,
                     .sink = &sink_,
                     .hello = {},
                     .boot_id = 77});
      EXPECT_TRUE(loop.Run().ok());
    });
    Post(SessionOpened{1});
  }
  ~StepLoopTest() override {
    Post(StopRequested{});
    thread_.join();
    EXPECT_EQ(device_.labels->free_pages(), device_.labels->total_pages());
  }

  void Post(WorkerCommand command) { EXPECT_TRUE(inbox_.TryPush(std::move(command))); }

  v1::SequenceStart Start(uint64_t id, uint32_t prompt, uint32_t max_new) {
    v1::SequenceStart start;
    start.set_sequence_id(id);
    for (uint32_t i = 0; i < prompt; ++i) start.add_prompt_ids((i * 7 + id) % 160);
    start.set_max_new_tokens(max_new);
    start.set_top_p(1);
    start.set_attention(v1::ATTENTION_DOUBLE_SPARSITY);
    start.mutable_budget()->set_rows(80);
    start.set_owner(1000 + id);
    if (GetParam() != Where::kSegment) {
      start.set_placement(GetParam() == Where::kResident ? v1::PLACEMENT_RESIDENT
                                                         : v1::PLACEMENT_OFFLOAD);
    }
    auto grant = segment_->Grant(prompt + max_new, 1000 + id);
    EXPECT_TRUE(grant.ok()) << grant.status();
    start.mutable_blocks()->Add(grant->blocks.begin(), grant->blocks.end());
    start.mutable_generations()->Add(grant->generations.begin(), grant->generations.end());
    return start;
  }

  void Plan(const std::vector<v1::SequenceStart>& starts, const std::vector<uint64_t>& members,
            uint32_t steps = 10000) {
    v1::Plan plan;
    plan.set_epoch(++epoch_);
    for (const auto& start : starts) *plan.add_starts() = start;
    plan.mutable_members()->Add(members.begin(), members.end());
    plan.set_prefill_unit_tokens(256);
    plan.set_valid_steps(steps);
    Post(PlanArrived{1, plan});
  }

  std::vector<v1::SequenceEnd> WaitForEnds(size_t count) {
    std::vector<v1::SequenceEnd> ends;
    sink_.WaitFor([&](const CollectingSink::Reports& reports) {
      ends.clear();
      for (const auto& [session, report] : reports) {
        ends.insert(ends.end(), report.ends().begin(), report.ends().end());
      }
      return ends.size() >= count;
    });
    return ends;
  }
  std::vector<uint32_t> Tokens(uint64_t id) {
    std::vector<uint32_t> tokens;
    for (const auto& [session, report] : sink_.Snapshot()) {
      for (const auto& event : report.tokens()) {
        if (event.sequence_id() != id) continue;
        EXPECT_EQ(event.index(), tokens.size());
        tokens.push_back(event.token_id());
      }
    }
    return tokens;
  }

  RandomCheckpoint checkpoint_{{.context = 2048}, 21};
  const ModelFiles& files_ = checkpoint_.files();
  std::unique_ptr<kv_store::SegmentClient> segment_;
  Device device_;
  WorkerInbox inbox_{64};
  CollectingSink sink_;
  std::thread thread_;
  uint64_t epoch_ = 0;
};

TEST_P(StepLoopTest, TokensAreThoseOfTheSequenceAlone) {
  Plan({Start(1, 300, 20), Start(2, 50, 20), Start(3, 600, 20)}, {1, 2, 3});
  const auto ends = WaitForEnds(3);
  for (const auto& end : ends) {
    EXPECT_EQ(end.reason(), v1::FINISH_REASON_LENGTH);
    EXPECT_EQ(end.generated(), 20u);
    EXPECT_GT(end.sparsity().rows_selected(), 0u);
  }
  for (auto [id, prompt] : {std::pair{1u, 300u}, {2u, 50u}, {3u, 600u}}) {
    auto runner = LocalRunner::Make(files_, {.max_tokens = prompt + 20, .chunk_tokens = 600});
    std::vector<uint32_t> ids;
    for (uint32_t i = 0; i < prompt; ++i) ids.push_back((i * 7 + id) % 160);
    std::vector<uint32_t> expected;
    (*runner)->Forward(ids, RowBudget{});
    const float* logits = (*runner)->Logits(prompt - 1);
    while (true) {
      const float* end = logits + files_.config.vocab_size;
      expected.push_back(static_cast<uint32_t>(std::max_element(logits, end) - logits));
      if (expected.size() == 20) break;
      (*runner)->Forward({&expected.back(), 1}, {.rows = 80});
      logits = (*runner)->Logits(0);
    }
    EXPECT_EQ(Tokens(id), expected) << "sequence " << id;
  }
}

// Where the host reads the device's memory; elsewhere a target is refused, in one line.
TEST_P(StepLoopTest, RecallIsToldAndTargetsAreHeld) {
  auto target = Start(2, 300, 40);
  target.set_recall_target(0.5);
  target.mutable_budget()->set_rows(200);
  auto dense = Start(3, 30, 10);
  dense.set_attention(v1::ATTENTION_DENSE);
  dense.set_recall_target(0.5);
  auto beyond = Start(4, 30, 10);
  beyond.set_recall_target(1);
  Plan({Start(1, 300, 40), target, dense, beyond}, {1, 2, 3, 4});
  const bool host = GetParam() == Where::kSegment;
  for (const v1::SequenceEnd& end : WaitForEnds(4)) {
    const v1::Sparsity& sparsity = end.sparsity();
    const uint64_t id = end.sequence_id();
    if (id > 2) {
      EXPECT_EQ(end.error_code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
      EXPECT_TRUE(end.error().starts_with("recall_target: ")) << end.error();
    } else if (id == 2 && !host) {
      EXPECT_EQ(end.error_code(), static_cast<int>(absl::StatusCode::kFailedPrecondition));
      EXPECT_EQ(end.error(), "recall_target: is not in this version of backend cuda");
    } else if (!host) {
      EXPECT_EQ(sparsity.recall_samples(), 0u);
    } else {
      EXPECT_EQ(sparsity.recall_samples(), id == 1 ? 3u : 4 * 2 + 9u);
      EXPECT_EQ(sparsity.recall_target(), id == 1 ? 0 : 0.5);
      EXPECT_EQ(sparsity.dense_layers(), 0u);
      EXPECT_GT(sparsity.attention_recall(), 0.1);
      // The first four steps of a target take the budget, two thirds of the tokens.
      EXPECT_LT(sparsity.attention_recall(), id == 1 ? 0.45 : 0.85);
      EXPECT_GT(sparsity.budget_effective(), 79u);
      EXPECT_LE(sparsity.budget_effective(), id == 1 ? 80u : 200u);
    }
  }
}

TEST_P(StepLoopTest, AStopIdEndsWithIt) {
  Plan({Start(1, 30, 40)}, {1});
  WaitForEnds(1);
  const auto tokens = Tokens(1);
  ASSERT_EQ(tokens.size(), 40u);
  segment_->ReleaseLocal(1001);
  auto again = Start(1, 30, 40);
  again.set_sequence_id(2);
  again.add_stop_token_ids(tokens[5]);
  Plan({again}, {2});
  const auto ends = WaitForEnds(2);
  EXPECT_EQ(ends[1].reason(), v1::FINISH_REASON_STOP);
  const size_t first = std::find(tokens.begin(), tokens.end(), tokens[5]) - tokens.begin();
  EXPECT_EQ(ends[1].generated(), first + 1);
}

TEST_P(StepLoopTest, WhoLeavesThePlanIsDropped) {
  Plan({Start(1, 40, 1500), Start(2, 40, 30)}, {1, 2});
  sink_.WaitFor([](const CollectingSink::Reports& reports) {
    for (const auto& [session, report] : reports) {
      if (!report.tokens().empty()) return true;
    }
    return false;
  });
  Plan({}, {2});
  const auto ends = WaitForEnds(2);
  for (const auto& end : ends) {
    EXPECT_EQ(end.reason(),
              end.sequence_id() == 1 ? v1::FINISH_REASON_CANCELLED : v1::FINISH_REASON_LENGTH);
  }
}

TEST_P(StepLoopTest, APlanIsGoodForItsStepsOnly) {
  Plan({Start(1, 40, 500)}, {1}, /*steps=*/8);
  sink_.WaitFor([](const CollectingSink::Reports& reports) {
    return !reports.empty() && reports.back().second.stats().plan_exhausted();
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(Tokens(1).size(), 9u);  // the prompt's step makes two: its own and the first decode
  Plan({}, {1});
  EXPECT_EQ(WaitForEnds(1)[0].generated(), 500u);
}

TEST_P(StepLoopTest, BlocksOfAnotherOwnerAreDataLoss) {
  auto start = Start(1, 40, 1500);
  Plan({start}, {1});
  sink_.WaitFor([](const CollectingSink::Reports& reports) {
    for (const auto& [session, report] : reports) {
      if (!report.tokens().empty()) return true;
    }
    return false;
  });
  segment_->ReleaseLocal(1001);  // as a store would that thinks the sequence has ended
  const auto ends = WaitForEnds(1);
  EXPECT_EQ(ends[0].reason(), v1::FINISH_REASON_ERROR);
  EXPECT_EQ(ends[0].error_code(), static_cast<int>(absl::StatusCode::kDataLoss)) << ends[0].error();
}

TEST_P(StepLoopTest, BadStartsEndAtOnce) {
  auto far = Start(1, 10, 10);
  far.set_prompt_ids(3, 160);
  auto few = Start(2, 100, 100);
  few.mutable_blocks()->Truncate(1);
  auto empty = Start(3, 1, 5);
  empty.clear_prompt_ids();
  auto no_budget = Start(4, 10, 10);
  no_budget.mutable_budget()->set_rows(0);
  Plan({far, few, empty, no_budget}, {1, 2, 3, 4});
  for (const auto& end : WaitForEnds(4)) {
    EXPECT_EQ(end.reason(), v1::FINISH_REASON_ERROR);
    EXPECT_EQ(end.error_code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
    EXPECT_FALSE(end.error().empty());
  }
}

TEST_P(StepLoopTest, ANewSessionDropsTheOldOnes) {
  Plan({Start(1, 40, 1500)}, {1});
  Post(SessionOpened{2});
  sink_.WaitFor([](const CollectingSink::Reports& reports) {
    return !reports.empty() && reports.back().first == 2 && reports.back().second.has_hello();
  });
  Post(SessionClosed{1});  // late news of the old one
  v1::Plan plan;
  plan.set_epoch(1);
  plan.set_valid_steps(1000);
  *plan.add_starts() = Start(5, 40, 10);
  plan.add_members(5);
  Post(PlanArrived{2, plan});
  EXPECT_EQ(WaitForEnds(1)[0].sequence_id(), 5u);
}

std::string NameOf(const testing::TestParamInfo<Where>& where) {
  if (where.param == Where::kSegment) return "InTheSegment";
  return where.param == Where::kResident ? "Resident" : "Offload";
}
INSTANTIATE_TEST_SUITE_P(Devices, StepLoopTest,
                         testing::Values(Where::kSegment, Where::kResident, Where::kOffload),
                         NameOf);

}  // namespace
}  // namespace sparsekv
