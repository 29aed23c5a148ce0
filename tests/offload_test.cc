// The offload pipeline in real processes: answers are the same whatever serves the rows, a stopped
// store costs a deadline and no answer, and rows of sequences that came and went never show.
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <random>
#include <thread>

#include "tests/chase.h"
#include "tests/client.h"
#include "tests/server_process.h"

namespace sparsekv {
namespace {

using testing::Chase;
using testing::Client;
using testing::Eventually;
using testing::MakeChase;
using testing::Reply;
using testing::ScratchDir;
using testing::ServerProcess;

v1::GenerateRequest Ask(const Chase& chase, uint32_t rows) {
  auto request = testing::IdsRequest(chase.prompt, static_cast<uint32_t>(chase.expected.size()));
  request.set_attention(rows ? v1::ATTENTION_DOUBLE_SPARSITY : v1::ATTENTION_DENSE);
  if (rows) request.mutable_budget()->set_rows(rows);
  return request;
}

std::vector<std::string> Serve(const ScratchDir& dir, std::vector<std::string> options) {
  options.insert(options.begin(), {"--model", dir.path(), "--host-memory", "128M"});
  return options;
}

TEST(OffloadTest, EveryWayAnswersTheSame) {
  ScratchDir dir;
  const Chase chase = MakeChase(dir.path(), {"--context", "4096", "--hops", "48", "--extra-layers",
                                             "2", "--dtype", "bfloat16"});
  const std::vector<std::vector<std::string>> ways = {
      {"--placement", "resident"},
      {"--placement", "offload", "--hot-rows", "600"},
      {"--placement", "offload", "--predict", "on", "--link", "4e8,20e-6"},
      {"--placement", "offload", "--predict", "on", "--hot-rows", "400", "--fetch", "gather"},
      {"--predict", "on", "--hot-rows", "300", "--link", "4e8,20e-6", "--device-memory", "107M"},
  };
  for (const auto& way : ways) {
    ServerProcess server(Serve(dir, way));
    ASSERT_TRUE(server.ready()) << way[1];
    Client client(server.grpc());
    std::vector<Reply> replies(4);
    std::vector<std::thread> callers;
    for (Reply& reply : replies) {
      callers.emplace_back([&] { reply = client.Generate(Ask(chase, 256)); });
    }
    for (std::thread& caller : callers) caller.join();
    replies.push_back(client.Generate(Ask(chase, 0)));  // dense
    for (const Reply& reply : replies) {
      EXPECT_EQ(reply.code, 0) << reply.message;
      EXPECT_EQ(reply.ids, chase.expected) << way[1] << " " << way.back();
    }
    const auto& figures = replies[0].last.sparsity();
    EXPECT_EQ(figures.rows_selected(),
              figures.hits() + figures.prefetch_useful() + figures.misses());
    const bool predicts = std::ranges::count(way, "--predict") > 0;
    const double started = server.Metric("sparsekv_rows_prefetched_total") +
                           server.Metric("sparsekv_rows_prefetch_cut_total");
    EXPECT_EQ(started > 0, predicts) << way.back();
    EXPECT_GT(server.Metric("sparsekv_rows_hit_total"), 0) << way.back();
    if (way.back() == "gather") {
      EXPECT_GT(server.Metric("sparsekv_fetch_bytes_total{path=\"gather\"}"), 0);
    }
    // P7: what sequences held is free again.
    EXPECT_TRUE(Eventually([&] {
      return server.Metric("sparsekv_device_kv_bytes{kind=\"rows\"}") == 0 &&
             server.Metric("sparsekv_device_kv_bytes{kind=\"maps\"}") == 0;
    }));
    EXPECT_EQ(server.Stop(), 0);
  }
}

TEST(OffloadTest, AStoppedStoreDelaysNothingForLong) {
  ScratchDir dir;
  const Chase chase =
      MakeChase(dir.path(), {"--context", "4096", "--hops", "200", "--extra-layers", "2"});
  ServerProcess server(
      Serve(dir, {"--placement", "offload", "--predict", "on", "--hot-rows", "300", "--fetch",
                  "gather", "--link", "2e7,1e-3"}));  // slow: time to stop the store
  ASSERT_TRUE(server.ready());
  Client client(server.grpc());
  const pid_t store = server.Children().find("sparsekv-kv-store")->second;
  Reply reply;
  std::thread caller([&] { reply = client.Generate(Ask(chase, 256)); });
  EXPECT_TRUE(Eventually(
      [&] { return server.Metric("sparsekv_fetch_bytes_total{path=\"gather\"}") > 0; }, 60));
  kill(store, SIGSTOP);
  EXPECT_TRUE(Eventually(
      [&] { return server.Metric("sparsekv_gather_requests_total{result=\"expired\"}") > 0; }));
  caller.join();  // it ends while the store stands still
  kill(store, SIGCONT);
  EXPECT_EQ(reply.code, 0) << reply.message;
  EXPECT_EQ(reply.ids, chase.expected);
  const double before = server.Metric("sparsekv_fetch_bytes_total{path=\"gather\"}");
  EXPECT_EQ(client.Generate(Ask(chase, 256)).ids, chase.expected);
  EXPECT_GT(server.Metric("sparsekv_fetch_bytes_total{path=\"gather\"}"), before);
  EXPECT_EQ(server.Metric("sparsekv_gather_requests_total{result=\"refused\"}"), 0);
  EXPECT_EQ(server.Stop(), 0);
}

// P3: 2,000 sequences over a segment that holds a few; some are left in the middle. Whoever is
// served a row of another one loses the chase.
TEST(OffloadTest, TwoThousandSequencesInASmallSegment) {
  ScratchDir dir;
  const Chase chase = MakeChase(dir.path(), {"--context", "384", "--hops", "6"});
  const std::vector<std::vector<std::string>> ways = {
      {"--predict", "on", "--hot-rows", "160", "--fetch", "gather", "--placement", "offload"},
      {"--predict", "on", "--placement", "offload"},
  };
  for (const auto& way : ways) {
    auto options = Serve(dir, way);
    options[3] = "5M";  // of host memory: some ten sequences
    options.insert(options.end(), {"--max-batch", "8"});
    ServerProcess server(options);
    ASSERT_TRUE(server.ready());
    std::atomic<uint32_t> next{0}, right{0}, left{0}, wrong{0};
    std::vector<std::thread> callers;
    for (uint32_t c = 0; c < 12; ++c) {
      callers.emplace_back([&, c] {
        Client client(server.grpc());
        std::mt19937 random(c);
        while (next++ < 1000) {
          Client::Call call;
          if (random() % 4 == 0) call.cancel_after_tokens = random() % 6;
          const Reply reply = client.Generate(Ask(chase, 128), call);
          if (reply.code == 1) {
            ++left;
          } else {
            ++(reply.code == 0 && reply.ids == chase.expected ? right : wrong);
          }
        }
      });
    }
    for (std::thread& caller : callers) caller.join();
    EXPECT_EQ(wrong, 0u);
    EXPECT_EQ(right + left, 1000u);
    EXPECT_GT(right, 700u);
    EXPECT_TRUE(
        Eventually([&] { return server.Metric("sparsekv_host_kv_bytes{state=\"used\"}") == 0; }));
    EXPECT_EQ(server.Stop(), 0);
  }
}

}  // namespace
}  // namespace sparsekv
