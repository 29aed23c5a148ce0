#include "coordinator/engine.h"

#include "base/limits.h"
#include "coordinator/engine_fixture.h"

namespace sparsekv {
namespace {

using Fixture = EngineFixture;

TEST(Engine, StreamsACompletionAndGivesTheBlocksBack) {
  Fixture f;
  f.Begin();
  EXPECT_EQ(f.ready, 1);
  EXPECT_TRUE(f.serving);
  auto request = Fixture::Request("hello", 3);
  request.set_request_id("mine");
  request.set_seed(11);
  const auto client = f.Submit(request);
  for (int i = 0; i < 3; ++i) f.Step();
  EXPECT_EQ(client->finishes, 1);
  EXPECT_TRUE(client->status.ok()) << client->status;
  EXPECT_EQ(client->all.request_id(), "mine");
  EXPECT_EQ(client->all.seed(), 11u);
  EXPECT_EQ(client->all.text(), "abc");
  EXPECT_EQ(client->all.token_ids_size(), 3);
  EXPECT_EQ(client->all.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(client->all.usage().prompt_tokens(), 5u);
  EXPECT_EQ(client->all.usage().completion_tokens(), 3u);
  EXPECT_EQ(client->all.sparsity().attention(), v1::ATTENTION_DOUBLE_SPARSITY);
  EXPECT_EQ(client->all.sparsity().rows_selected(), 3u);
  EXPECT_EQ(client->all.timings().decode_s(), 0.5);
  EXPECT_GE(client->all.timings().ttft_s(), client->all.timings().queue_s());
  EXPECT_TRUE(f.AllBlocksFree());
}

TEST(Engine, StartsCarryWhatTheWorkerNeeds) {
  Fixture f;
  f.Begin();
  auto request = Fixture::Request(std::string(100, 'p'), 29);
  request.set_temperature(0.5);
  request.set_logprobs(3);
  f.Submit(request);
  f.Settle();
  ASSERT_EQ(f.workers[0]->plans_sent.size(), 1u);
  const v1::Plan& plan = f.workers[0]->plans_sent[0];
  EXPECT_EQ(plan.valid_steps(), kPlanSteps);
  EXPECT_EQ(plan.prefill_unit_tokens() % kPrefillAlign, 0u);
  ASSERT_EQ(plan.starts_size(), 1);
  const v1::SequenceStart& start = plan.starts(0);
  EXPECT_EQ(start.prompt_ids_size(), 100);
  EXPECT_EQ(start.blocks_size(), 3);
  EXPECT_EQ(start.generations_size(), 3);
  EXPECT_NE(start.owner(), 0u);
  EXPECT_NE(start.seed(), 0u);
  EXPECT_EQ(start.temperature(), 0.5f);
  EXPECT_TRUE(start.want_logprobs());
  EXPECT_EQ(start.budget().fraction_denominator(), 16u);
  EXPECT_EQ(start.stop_token_ids(0), kTestEos);
}

TEST(Engine, EndOfSequenceIdIsReportedButHasNoText) {
  Fixture f;
  f.workers[0]->next_token = [](const auto&, uint32_t i) { return i < 2 ? 'x' : kTestEos; };
  f.Begin();
  const auto client = f.Submit(Fixture::Request("p", 10));
  for (int i = 0; i < 4; ++i) f.Step();
  EXPECT_EQ(client->all.text(), "xx");
  EXPECT_EQ(client->all.token_ids_size(), 3);
  EXPECT_EQ(client->all.finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(client->all.stop_string(), "");
}

TEST(Engine, StopStringEndsTheSequenceByAPlanWithoutIt) {
  Fixture f;
  f.Begin();
  auto request = Fixture::Request("p", 50);
  request.add_stop("de");
  const auto client = f.Submit(request);
  for (int i = 0; i < 5; ++i) f.Step();
  EXPECT_FALSE(client->done());
  EXPECT_EQ(client->all.text(), "abc");
  EXPECT_FALSE(f.AllBlocksFree());
  f.workers[0]->Step();  // takes the plan
  EXPECT_TRUE(client->done());
  f.Settle();
  EXPECT_EQ(client->all.text(), "abc");
  EXPECT_EQ(client->all.stop_string(), "de");
  EXPECT_EQ(client->all.finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(client->all.usage().completion_tokens(), 5u);
  EXPECT_EQ(client->all.token_ids_size(), 5);
  EXPECT_TRUE(f.AllBlocksFree());
}

TEST(Engine, TokensMadeAfterAStopStringAreIgnored) {
  Fixture f;
  f.Begin();
  auto request = Fixture::Request("p", 50);
  request.add_stop("b");
  const auto client = f.Submit(request);
  f.Step();
  f.workers[0]->Step();
  f.workers[0]->Step();  // the plan has not been sent yet: one token too many
  f.Step();
  EXPECT_EQ(client->all.text(), "a");
  EXPECT_EQ(client->all.token_ids_size(), 2);
  EXPECT_TRUE(client->done());
  EXPECT_TRUE(f.AllBlocksFree());
}

TEST(Engine, WhatOnlyLookedLikeAStopComesAtTheEnd) {
  Fixture f;
  f.Begin();
  auto request = Fixture::Request("p", 4);
  request.add_stop("cdX");
  const auto client = f.Submit(request);
  for (int i = 0; i < 4; ++i) f.Step();
  EXPECT_EQ(client->all.text(), "abcd");
  EXPECT_EQ(client->all.finish_reason(), v1::FINISH_REASON_LENGTH);
}

// Cancels at one point of a request's life. Whatever the point: the client ends once with the
// status, and the blocks are free once the worker has taken the next plan.
class CancelAt : public ::testing::TestWithParam<int> {};

TEST_P(CancelAt, EndsOnceAndFreesEverything) {
  Fixture f;
  f.Begin();
  auto request = Fixture::Request("prompt", 40);
  request.add_stop("f");
  const auto client = f.Submit(request);
  const auto check_going = [&] { ASSERT_FALSE(client->done()); };
  switch (GetParam()) {
    case 0:  // tokenising
      break;
    case 1:  // allocating: the store has not answered
      f.Poll();
      ASSERT_EQ(f.store->waiting(), 1u);
      break;
    case 2:  // started, the plan is not sent
      f.Poll();
      f.store->Deliver();
      break;
    case 3:  // prefill: the plan is sent
      f.Settle();
      break;
    case 4:  // prefill on the worker
      f.Settle();
      f.workers[0]->Step(/*tokens=*/false);
      break;
    case 5:  // decoding
      for (int i = 0; i < 3; ++i) f.Step();
      break;
    case 6:  // a stop string was found, the end is not reported yet
      for (int i = 0; i < 6; ++i) f.Step();
      break;
  }
  check_going();
  f.engine->Cancel(client.key, absl::DeadlineExceededError("late"));
  EXPECT_EQ(client->finishes, 1);
  EXPECT_TRUE(absl::IsDeadlineExceeded(client->status));
  f.Settle();
  for (int i = 0; i < 2; ++i) {
    f.workers[0]->Step();
    f.Settle();
  }
  EXPECT_EQ(client->finishes, 1);
  EXPECT_TRUE(f.AllBlocksFree());
  EXPECT_TRUE(f.workers[0]->live().empty());
  f.Cancel(client);  // too late: nothing happens

  const auto next = f.Submit(Fixture::Request("next", 1));  // everything works as before
  f.Step();
  EXPECT_TRUE(next->status.ok() && next->done());
}

INSTANTIATE_TEST_SUITE_P(Phases, CancelAt, ::testing::Range(0, 7));

TEST(Engine, CancelledWhileQueuedLetsTheNextOnePass) {
  Fixture f;
  f.Begin();
  const auto running = f.Submit(Fixture::Request("p", 10 * 64 - 1));  // 10 of 16 blocks
  const auto big = f.Submit(Fixture::Request("p", 10 * 64 - 1));
  const auto small = f.Submit(Fixture::Request("p", 1));
  for (int i = 0; i < 3; ++i) f.Step();
  EXPECT_FALSE(small->done());  // nobody passes
  f.Cancel(big);
  f.Step();
  EXPECT_TRUE(small->done());
  EXPECT_FALSE(running->done());
  f.Cancel(running);
  f.Step();
  EXPECT_TRUE(f.AllBlocksFree());
}

TEST(Engine, BadInputIsRefusedAndChangesNothing) {
  Fixture f;
  f.Begin();
  const auto empty = f.Submit(Fixture::Request("\n", 1));
  auto named = Fixture::Request("p", 1);
  named.set_request_id(std::string(kMaxRequestIdBytes + 1, 'x'));
  const auto long_id = f.Submit(named);
  f.Settle();
  EXPECT_EQ(std::string(empty->status.message()), "prompt.text: yields no tokens");
  EXPECT_TRUE(absl::IsInvalidArgument(long_id->status));
  EXPECT_EQ(f.store->allocations, 0);
  EXPECT_TRUE(f.workers[0]->plans_sent.empty());
}

TEST(Engine, LiveDuplicateIsRefusedAndALaterOneIsNot) {
  Fixture f;
  f.Begin();
  auto request = Fixture::Request("p", 2);
  request.set_request_id("same");
  const auto first = f.Submit(request);
  const auto second = f.Submit(request);
  EXPECT_TRUE(absl::IsAlreadyExists(second->status)) << second->status;
  for (int i = 0; i < 2; ++i) f.Step();
  EXPECT_TRUE(first->done());
  const auto third = f.Submit(request);
  for (int i = 0; i < 2; ++i) f.Step();
  EXPECT_TRUE(third->done() && third->status.ok());
}

TEST(Engine, WhatCanNeverFitIsRefusedWithNumbers) {
  Fixture f;
  f.Begin();
  const auto client = f.Submit(Fixture::Request("p", 17 * 64));
  f.Settle();
  EXPECT_TRUE(absl::IsResourceExhausted(client->status));
  EXPECT_EQ(std::string(client->status.message()),
            "prompt + max_new_tokens need 18 row blocks of 64 tokens, host memory has 16");
}

TEST(Engine, WhatCanNeverFitLabelsIsRefusedButRunsDense) {
  Fixture f;
  f.workers[0]->hello.set_label_pages(4);
  f.Begin();
  auto request = Fixture::Request("p", 5 * 64);
  const auto sparse = f.Submit(request);
  request.set_attention(v1::ATTENTION_DENSE);
  const auto dense = f.Submit(request);
  f.Step();
  EXPECT_TRUE(absl::IsResourceExhausted(sparse->status));
  EXPECT_EQ(std::string(sparse->status.message()),
            "prompt + max_new_tokens need 6 label pages of 64 tokens, device memory has 4");
  EXPECT_EQ(dense->all.token_ids_size(), 1);
}

TEST(Engine, QueuedBeforeTheSizesWereKnownIsRefusedThen) {
  Fixture f;
  f.workers[0]->Up(1);
  const auto client = f.Submit(Fixture::Request("p", 17 * 64));
  f.Settle();
  EXPECT_FALSE(client->done());
  f.store->Up();
  f.Settle();
  EXPECT_TRUE(absl::IsResourceExhausted(client->status));
}

TEST(Engine, TheQueueIsBounded) {
  Fixture f;
  f.Begin();
  std::vector<Fixture::Client> clients;
  clients.push_back(f.Submit(Fixture::Request("p", 15 * 64)));
  f.Settle();
  for (uint32_t i = 0; i < kMaxQueued; ++i) {
    clients.push_back(f.Submit(Fixture::Request("p", 15 * 64)));
  }
  const auto refused = f.Submit(Fixture::Request("p", 1));
  EXPECT_TRUE(absl::IsResourceExhausted(refused->status));
  EXPECT_FALSE(clients.back()->done());
  f.engine->FailAll(absl::UnavailableError("end"));
  for (const auto& client : clients) EXPECT_EQ(client->finishes, 1);
  f.Step();
  EXPECT_TRUE(f.AllBlocksFree());
}

TEST(Engine, RequestsWaitForTheFirstWorker) {
  Fixture f;
  EXPECT_FALSE(f.engine->ModelInfo().ok());
  const auto client = f.Submit(Fixture::Request("p", 1));
  f.Settle();
  EXPECT_FALSE(client->done());
  EXPECT_FALSE(f.serving);
  f.Begin();
  f.Step();
  EXPECT_TRUE(client->done() && client->status.ok());
  EXPECT_EQ(f.engine->ModelInfo()->token_capacity(), 16u * 64);
}

TEST(Engine, ReadyOnlyWhenEveryWorkerIsThere) {
  Fixture f(2);
  f.store->Up();
  f.workers[0]->Up(1);
  f.Settle();
  EXPECT_TRUE(f.serving);
  EXPECT_TRUE(f.engine->Readiness().ok());
  EXPECT_EQ(f.ready, 0);
  f.workers[1]->Up(2);
  f.Settle();
  EXPECT_EQ(f.ready, 1);
  f.workers[0]->Down();
  f.workers[1]->Down();
  EXPECT_FALSE(f.serving);
  EXPECT_FALSE(f.engine->Readiness().ok());
  f.workers[0]->Up(3);
  f.workers[1]->Up(4);
  f.Settle();
  EXPECT_TRUE(f.serving);
  EXPECT_EQ(f.ready, 1);
}

TEST(Engine, AWorkerOfAnotherModelOrPoolIsRefused) {
  Fixture f(3);
  f.workers[1]->hello.mutable_model()->set_fingerprint("00000000000000bb");
  f.workers[2]->hello.set_pool(1);
  f.Begin();
  EXPECT_EQ(f.workers[0]->broken.size(), 0u);
  EXPECT_EQ(f.workers[1]->broken.size(), 1u);
  EXPECT_EQ(f.workers[2]->broken.size(), 1u);
  EXPECT_EQ(f.ready, 0);
  f.workers[1]->Down();
  const auto client = f.Submit(Fixture::Request("p", 1));
  f.Step();
  EXPECT_TRUE(client->status.ok() && client->done());
}

// A worker dies at one point of a request's life.
class WorkerDiesAt : public ::testing::TestWithParam<int> {};

TEST_P(WorkerDiesAt, RunningRequestsEndAndTheQueueIsKept) {
  Fixture f;
  f.Begin();
  auto request = Fixture::Request("p", 10 * 64 - 1);
  request.add_stop("d");
  const auto running = f.Submit(request);
  const auto queued = f.Submit(Fixture::Request("p", 10 * 64 - 1));
  bool runs = true;
  switch (GetParam()) {
    case 0:  // allocating
      f.Poll();
      runs = false;
      break;
    case 1:  // the plan is sent
      f.Settle();
      break;
    case 2:  // decoding
      for (int i = 0; i < 3; ++i) f.Step();
      break;
    case 3:  // a stop string was found
      for (int i = 0; i < 4; ++i) f.Step();
      break;
  }
  ASSERT_FALSE(running->done());
  f.workers[0]->Down();
  f.Settle();
  EXPECT_EQ(running->done(), runs);
  if (GetParam() == 3) {
    EXPECT_TRUE(running->status.ok());
    EXPECT_EQ(running->all.text(), "abc");
    EXPECT_EQ(running->all.finish_reason(), v1::FINISH_REASON_STOP);
  } else if (runs) {
    EXPECT_TRUE(absl::IsUnavailable(running->status));
  }
  // Its blocks may still be written to until a new stream is there.
  if (runs) {
    EXPECT_FALSE(f.AllBlocksFree());
  }
  EXPECT_FALSE(queued->done());

  f.workers[0]->Up(++f.boots);
  for (int i = 0; i < 12; ++i) f.Step();
  if (!runs) {
    EXPECT_EQ(running->all.text(), "abc");
  }
  EXPECT_GT(queued->all.token_ids_size(), 0);
  f.Cancel(queued);
  f.Step();
  EXPECT_EQ(running->finishes, 1);
  EXPECT_EQ(queued->finishes, 1);
  EXPECT_TRUE(f.AllBlocksFree());
}

INSTANTIATE_TEST_SUITE_P(Phases, WorkerDiesAt, ::testing::Range(0, 4));

// The store dies at one point of a request's life, before or after it did what it was asked.
class StoreDiesAt : public ::testing::TestWithParam<std::tuple<int, bool>> {};

TEST_P(StoreDiesAt, RequestsGoOn) {
  const auto [phase, done] = GetParam();
  Fixture f;
  f.Begin();
  const auto client = f.Submit(Fixture::Request("p", 5));
  switch (phase) {
    case 0:  // tokenising
      break;
    case 1:  // allocating
      f.Poll();
      break;
    case 2:  // running
      f.Step();
      break;
    case 3:  // releasing
      f.Settle();
      for (int i = 0; i < 5; ++i) f.workers[0]->Step();
      ASSERT_TRUE(client->done());
      ASSERT_EQ(f.store->waiting(), 1u);
      break;
  }
  f.store->Down(done);
  EXPECT_FALSE(f.serving);
  for (int i = 0; i < 2; ++i) f.Step();
  if (phase == 2) {
    EXPECT_EQ(client->all.token_ids_size(), 3);  // steps need no store
  }
  f.store->Up();
  for (int i = 0; i < 6; ++i) f.Step();
  EXPECT_TRUE(f.serving);
  EXPECT_EQ(client->finishes, 1);
  EXPECT_TRUE(client->status.ok()) << client->status;
  EXPECT_EQ(client->all.text(), "abcde");
  EXPECT_TRUE(f.AllBlocksFree());
}

INSTANTIATE_TEST_SUITE_P(Phases, StoreDiesAt,
                         ::testing::Combine(::testing::Range(0, 4), ::testing::Bool()));

TEST(Engine, BlocksOfAFormerCoordinatorAreFreedOnceTheWorkerSaidHello) {
  Fixture f;
  f.store->Occupy(0, 77, 9);
  f.store->Up();
  f.Settle();
  EXPECT_FALSE(f.AllBlocksFree());  // a worker may still write to them
  f.workers[0]->Up(1);
  f.Settle();
  EXPECT_TRUE(f.AllBlocksFree());
}

TEST(Engine, AllocationIsTriedAgainWhenTheStoreHasNoRoomNow) {
  Fixture f;
  f.Begin();
  f.store->Occupy(0, 77, 16);
  const auto client = f.Submit(Fixture::Request("p", 1));
  f.Settle();
  EXPECT_FALSE(client->done());
  f.store->Occupy(0, 77, 0);
  f.io.restart();
  f.io.run_for(std::chrono::milliseconds(300));
  f.Step();
  EXPECT_TRUE(client->done() && client->status.ok());
}

TEST(Engine, AWorkersErrorReachesTheClient) {
  Fixture f;
  f.Begin();
  const auto client = f.Submit(Fixture::Request("p", 9));
  f.Step();
  f.workers[0]->Fail(client.key, static_cast<int>(absl::StatusCode::kDataLoss), "block 3: stamp");
  f.Settle();
  EXPECT_TRUE(absl::IsDataLoss(client->status));
  EXPECT_EQ(std::string(client->status.message()), "block 3: stamp");
  EXPECT_TRUE(f.AllBlocksFree());
}

TEST(Engine, LostTokensEndTheRequest) {
  Fixture f;
  f.Begin();
  const auto client = f.Submit(Fixture::Request("p", 9));
  f.Step();
  v1::Report report;
  report.add_tokens()->set_sequence_id(client.key);
  report.mutable_tokens(0)->set_index(5);
  f.workers[0]->Report(report);
  EXPECT_TRUE(absl::IsInternal(client->status));
  f.Step();
  EXPECT_TRUE(f.AllBlocksFree());
}

TEST(Engine, WornPlansAreReplacedAndReplacedOnesAreNotAnswered) {
  Fixture f;
  f.Begin();
  const auto client = f.Submit(Fixture::Request("p", 100));
  f.Step();
  const auto plans = [&] { return f.workers[0]->plans_sent.size(); };
  ASSERT_EQ(plans(), 1u);
  v1::Report report;
  report.mutable_stats()->set_steps(kPlanSteps / 2);
  f.workers[0]->Report(report);
  f.Settle();
  EXPECT_EQ(plans(), 2u);
  report.mutable_stats()->set_steps(3);
  f.workers[0]->Report(report);
  f.Settle();
  EXPECT_EQ(plans(), 2u);
  report.mutable_stats()->set_plan_exhausted(true);
  f.workers[0]->Report(report);
  f.Settle();
  EXPECT_EQ(plans(), 3u);
  f.Cancel(client);
  f.Step();
  f.workers[0]->Report(report);  // nothing runs: nothing to plan
  f.Settle();
  EXPECT_EQ(plans(), 4u);
}

TEST(Engine, DrainLetsRunningRequestsFinish) {
  Fixture f;
  f.Begin();
  const auto client = f.Submit(Fixture::Request("p", 3));
  f.Step();
  bool idle = false;
  f.engine->Drain([&] { idle = true; });
  EXPECT_FALSE(f.serving);
  const auto late = f.Submit(Fixture::Request("p", 1));
  EXPECT_TRUE(absl::IsUnavailable(late->status));
  EXPECT_FALSE(idle);
  for (int i = 0; i < 2; ++i) f.Step();
  EXPECT_TRUE(client->status.ok());
  EXPECT_TRUE(idle);
}

TEST(Engine, DrainDoesNotWaitForWorkersThatAreGone) {
  Fixture f;
  f.Begin();
  const auto running = f.Submit(Fixture::Request("p", 15 * 64));
  const auto queued = f.Submit(Fixture::Request("p", 15 * 64));
  f.Step();
  bool idle = false;
  f.engine->Drain([&] { idle = true; });
  f.workers[0]->Down();
  EXPECT_TRUE(idle);
  EXPECT_TRUE(absl::IsUnavailable(running->status));
  EXPECT_TRUE(absl::IsUnavailable(queued->status));
}

TEST(Engine, CountsInTheMetrics) {
  Fixture f;
  EXPECT_NE(f.metrics.Serialize().find("sparsekv_request_success_total{reason=\"deadline\"} 0"),
            std::string::npos);
  f.Begin();
  const auto cancelled = f.Submit(Fixture::Request("abc", 100));
  f.Submit(Fixture::Request("abc", 2));
  for (int i = 0; i < 2; ++i) f.Step();
  f.engine->UpdateGauges();
  std::string text = f.metrics.Serialize();
  EXPECT_NE(text.find("sparsekv_requests_running 1"), std::string::npos) << text;
  f.Cancel(cancelled);
  f.Step();
  f.engine->UpdateGauges();
  text = f.metrics.Serialize();
  for (const char* line :
       {"sparsekv_requests_running 0", "sparsekv_requests_waiting 0",
        "sparsekv_request_success_total{reason=\"length\"} 1",
        "sparsekv_request_success_total{reason=\"cancelled\"} 1", "sparsekv_prompt_tokens_total 6",
        "sparsekv_generation_tokens_total 4", "sparsekv_worker_up{worker=\"0\"} 1",
        "sparsekv_host_kv_bytes{state=\"used\"} 0", "sparsekv_host_kv_bytes{state=\"free\"} 65536",
        "sparsekv_time_to_first_token_seconds_count 2"}) {
    EXPECT_NE(text.find(line), std::string::npos) << line << "\n" << text;
  }
}

}  // namespace
}  // namespace sparsekv
