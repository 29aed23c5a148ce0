// The server as its users see it: processes started by `sparsekv serve`, a gRPC client, curl's kind
// of HTTP. Runs on deploy/demo.
#include <gtest/gtest.h>

#include <fstream>
#include <thread>

#include "tests/client.h"
#include "tests/server_process.h"

namespace sparsekv {
namespace {

using testing::Client;
using testing::Eventually;
using testing::Reply;
using testing::RunBinary;
using testing::ServerProcess;
using testing::TextRequest;

const std::string kDemo = std::string(SPARSEKV_SOURCE_DIR) + "/deploy/demo";

std::vector<std::string> DemoArguments() {
  return {"--model", kDemo, "--host-memory", "256M", "--device-memory", "256M"};
}

class ServiceTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    server_ = new ServerProcess(DemoArguments());
    ASSERT_TRUE(server_->ready());
  }
  static void TearDownTestSuite() {
    EXPECT_EQ(server_->Stop(), 0);
    delete server_;
  }
  bool NothingHeld() {
    return Eventually([] {
      return server_->Metric("sparsekv_host_kv_bytes{state=\"used\"}") == 0 &&
             server_->Metric("sparsekv_requests_running") == 0;
    });
  }

  static ServerProcess* server_;
  Client client_{server_->grpc()};
};
ServerProcess* ServiceTest::server_ = nullptr;

TEST_F(ServiceTest, StreamsACompletion) {
  const Reply reply = client_.Generate(TextRequest("In the beginning", 40));
  ASSERT_EQ(reply.code, 0) << reply.message;
  EXPECT_EQ(reply.last.usage().completion_tokens(), reply.ids.size());
  EXPECT_EQ(reply.last.usage().prompt_tokens(), client_.Tokenize("In the beginning").size());
  EXPECT_NE(reply.last.finish_reason(), v1::FINISH_REASON_UNSPECIFIED);
  EXPECT_FALSE(reply.text.empty());
  EXPECT_FALSE(reply.first.request_id().empty());
  EXPECT_GT(reply.last.timings().ttft_s(), 0);
  EXPECT_TRUE(NothingHeld());
}

// P1: a budget of the context or more gives the tokens of dense attention.
TEST_F(ServiceTest, FullBudgetGivesDenseTokens) {
  for (const char* prompt : {"And God said unto Moses,", "The LORD is my shepherd; "}) {
    auto request = TextRequest(prompt, 100);
    request.set_attention(v1::ATTENTION_DENSE);
    const Reply dense = client_.Generate(request);
    request.set_attention(v1::ATTENTION_DOUBLE_SPARSITY);
    request.mutable_budget()->set_rows(8192);
    const Reply sparse = client_.Generate(request);
    ASSERT_EQ(dense.code, 0) << dense.message;
    EXPECT_EQ(dense.ids, sparse.ids);
    EXPECT_EQ(sparse.last.sparsity().attention(), v1::ATTENTION_DOUBLE_SPARSITY);
    EXPECT_GT(sparse.last.sparsity().device_kv_bytes(), 0u);
    EXPECT_EQ(dense.last.sparsity().device_kv_bytes(), 0u);
  }
}

// What selections hold of dense attention is sampled for everybody; a target for that gives the
// same tokens alone and in a batch, and a target that the budget cannot hold falls back to dense.
TEST_F(ServiceTest, RecallIsSampledAndTargetsAreHeld) {
  std::string text;
  for (int verse = 0; verse < 60; ++verse) text += "And the LORD spake unto Moses, saying, ";
  auto request = TextRequest(text, 60);
  request.set_ignore_eos(true);
  const Reply fixed = client_.Generate(request);
  ASSERT_EQ(fixed.code, 0) << fixed.message;
  EXPECT_EQ(fixed.last.sparsity().recall_samples(), 4u);
  EXPECT_GT(fixed.last.sparsity().attention_recall(), 0.2);
  EXPECT_LT(fixed.last.sparsity().attention_recall(), 1);
  EXPECT_EQ(fixed.last.sparsity().recall_target(), 0);
  EXPECT_TRUE(Eventually([] {
    return server_->Metric("sparsekv_attention_recall_samples_total") >= 4 &&
           server_->Metric("sparsekv_attention_recall_ratio{layer=\"0\",worker=\"0\"}") > 0;
  }));

  request.set_recall_target(0.9);
  request.mutable_budget()->set_fraction_denominator(1);
  const Reply alone = client_.Generate(request);
  ASSERT_EQ(alone.code, 0) << alone.message;
  EXPECT_GE(alone.last.sparsity().attention_recall(), 0.9);
  EXPECT_LT(alone.last.sparsity().attention_recall(), 1);
  EXPECT_EQ(alone.last.sparsity().recall_target(), 0.9);
  EXPECT_EQ(alone.last.sparsity().dense_layers(), 0u);
  std::vector<Reply> together(3);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < together.size(); ++i) {
    threads.emplace_back([&, i] {
      auto company = i == 0 ? request : TextRequest(text.substr(100 * i), 80);
      together[i] = client_.Generate(company);
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(together[0].ids, alone.ids);
  EXPECT_EQ(together[0].last.sparsity().rows_selected(), alone.last.sparsity().rows_selected());

  request.set_recall_target(0.9999);
  request.mutable_budget()->set_rows(70);
  const Reply missed = client_.Generate(request);
  EXPECT_GT(missed.last.sparsity().dense_layers(), 0u);
  EXPECT_GT(missed.last.sparsity().budget_effective(), 70u);
  EXPECT_TRUE(Eventually([] { return server_->Metric("sparsekv_recall_fallbacks_total") > 0; }));
  EXPECT_TRUE(NothingHeld());
}

TEST_F(ServiceTest, ABatchGivesWhatEachGivesAlone) {
  const std::vector<std::string> prompts = {"In the beginning",
                                            "And it came to pass",
                                            "Blessed",
                                            "The book of the generation",
                                            "Now the",
                                            "Hear, O",
                                            "Praise ye the LORD.",
                                            "Then said he"};
  std::vector<v1::GenerateRequest> requests;
  for (size_t i = 0; i < prompts.size(); ++i) {
    requests.push_back(TextRequest(prompts[i], 60));
    requests.back().set_ignore_eos(true);
    if (i % 2) requests.back().mutable_budget()->set_rows(70);
    if (i % 3 == 2) {
      requests.back().set_temperature(0.8f);
      requests.back().set_seed(42 + i);
    }
  }
  std::vector<Reply> alone, together(prompts.size());
  for (const auto& request : requests) alone.push_back(client_.Generate(request));
  std::vector<std::thread> threads;
  for (size_t i = 0; i < prompts.size(); ++i) {
    threads.emplace_back([&, i] { together[i] = client_.Generate(requests[i]); });
  }
  for (auto& thread : threads) thread.join();
  for (size_t i = 0; i < prompts.size(); ++i) {
    EXPECT_EQ(together[i].code, 0) << together[i].message;
    EXPECT_EQ(together[i].ids, alone[i].ids) << prompts[i];
    EXPECT_EQ(together[i].ids.size(), 60u);
  }
  EXPECT_TRUE(NothingHeld());
}

TEST_F(ServiceTest, StopStringsCutTheText) {
  const Reply whole = client_.Generate(TextRequest("And the LORD spake unto", 60));
  ASSERT_GT(whole.text.size(), 40u);
  const std::string stop = whole.text.substr(25, 5);
  auto request = TextRequest("And the LORD spake unto", 60);
  request.add_stop(stop);
  const Reply cut = client_.Generate(request);
  EXPECT_EQ(cut.text, whole.text.substr(0, whole.text.find(stop)));
  EXPECT_EQ(cut.last.finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(cut.last.stop_string(), stop);
  EXPECT_TRUE(NothingHeld());
}

TEST_F(ServiceTest, CancelledAndDeadlinedCallsFreeWhatTheyHeld) {
  auto request = TextRequest("And", 8000);
  request.set_ignore_eos(true);
  EXPECT_EQ(client_.Generate(request, {.cancel_after_tokens = 3}).code, 1);
  EXPECT_TRUE(NothingHeld());
  EXPECT_EQ(client_.Generate(request, {.deadline_s = 0.4}).code, 4);
  EXPECT_TRUE(NothingHeld());
}

TEST_F(ServiceTest, LogprobsComeWithTheirTokens) {
  auto request = TextRequest("In the", 5);
  request.set_logprobs(3);
  const Reply reply = client_.Generate(request);
  ASSERT_EQ(reply.code, 0) << reply.message;
  ASSERT_EQ(reply.logprobs.size(), reply.ids.size());
  for (size_t i = 0; i < reply.ids.size(); ++i) {
    const auto& logprobs = reply.logprobs[i];
    EXPECT_EQ(logprobs.chosen().token_id(), reply.ids[i]);
    ASSERT_EQ(logprobs.top_size(), 3);
    EXPECT_EQ(logprobs.top(0).token_id(), reply.ids[i]);  // greedy
    EXPECT_LE(logprobs.chosen().logprob(), 0);
    EXPECT_GE(logprobs.top(0).logprob(), logprobs.top(1).logprob());
  }
}

TEST_F(ServiceTest, SaysWhatItServes) {
  const auto info = client_.ModelInfo();
  EXPECT_EQ(info.model(), "demo");
  EXPECT_EQ(info.vocab_size(), 4096u);
  EXPECT_TRUE(info.double_sparsity());
  EXPECT_TRUE(client_.Healthy());
  EXPECT_NE(server_->Get("/healthz").find("200 OK"), std::string::npos);
  EXPECT_NE(server_->Get("/readyz").find("200 OK"), std::string::npos);
  EXPECT_NE(server_->Get("/nothing").find("404"), std::string::npos);
  EXPECT_EQ(server_->Metric("sparsekv_worker_up{worker=\"0\"}"), 1);
}

TEST_F(ServiceTest, TheCommandLineIsAClientToo) {
  const auto text = RunBinary("sparsekv", {"generate", "--grpc", server_->grpc(), "--prompt",
                                           "In the beginning", "--max-tokens", "12"});
  EXPECT_EQ(text.code, 0) << text.err;
  const auto json = RunBinary("sparsekv", {"generate", "--grpc", server_->grpc(), "--prompt",
                                           "In the beginning", "--max-tokens", "12", "--json"});
  EXPECT_EQ(json.code, 0) << json.err;
  EXPECT_NE(json.out.find("\"finish_reason\":"), std::string::npos);
  EXPECT_EQ(json.out.find('\n'), json.out.size() - 1);
  const auto ids = RunBinary("sparsekv", {"tokenize", "--model", kDemo}, "In the beginning");
  EXPECT_EQ(ids.out.find("{\"ids\":["), 0u) << ids.err;
  const auto back = RunBinary("sparsekv", {"tokenize", "--model", kDemo, "--decode"}, ids.out);
  EXPECT_EQ(back.out, "In the beginning");
}

TEST(DrainTest, RunningJobsFinishAndNewOnesAreRefused) {
  ServerProcess server(DemoArguments());
  ASSERT_TRUE(server.ready());
  Client client(server.grpc());
  auto request = TextRequest("And", 300);
  request.set_ignore_eos(true);
  Reply running;
  std::thread thread([&] { running = client.Generate(request); });
  ASSERT_TRUE(Eventually([&] { return server.Metric("sparsekv_requests_running") == 1; }));
  const auto children = server.Children();
  EXPECT_EQ(server.Stop(), 0);
  thread.join();
  EXPECT_EQ(running.code, 0) << running.message;
  EXPECT_EQ(running.ids.size(), 300u);
  for (const auto& [name, pid] : children) {
    EXPECT_FALSE(std::ifstream("/proc/" + std::to_string(pid) + "/stat").good()) << name;
  }
}

}  // namespace
}  // namespace sparsekv
