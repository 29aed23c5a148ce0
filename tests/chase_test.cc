// The proof that the right row was found: a pointer chase through a checkpoint whose every answer
// needs one certain row, served by real processes. `sparsekv recall` makes checkpoint and chase.
#include "tests/chase.h"

#include <gtest/gtest.h>

#include "tests/client.h"
#include "tests/server_process.h"

namespace sparsekv {
namespace {

using testing::Chase;
using testing::Client;
using testing::MakeChase;
using testing::Reply;
using testing::ScratchDir;
using testing::ServerProcess;

size_t Right(const Reply& reply, const Chase& chase) {
  size_t right = 0;
  for (size_t i = 0; i < chase.expected.size() && i < reply.ids.size(); ++i) {
    if (reply.ids[i] != chase.expected[i]) break;  // from there on it chases something else
    ++right;
  }
  return right;
}

v1::GenerateRequest Ask(const Chase& chase, v1::Attention attention, uint32_t rows,
                        uint32_t denominator) {
  auto request = testing::IdsRequest(chase.prompt, static_cast<uint32_t>(chase.expected.size()));
  request.set_attention(attention);
  if (rows) request.mutable_budget()->set_rows(rows);
  if (denominator) request.mutable_budget()->set_fraction_denominator(denominator);
  return request;
}

TEST(ChaseTest, EasyCodesAt16K) {
  ScratchDir dir;
  const Chase chase = MakeChase(dir.path(), {"--context", "16384", "--hops", "64"});
  ASSERT_EQ(chase.prompt.size(), 16384u);
  ASSERT_EQ(chase.expected.size(), 64u);
  ServerProcess server({"--model", dir.path(), "--host-memory", "256M"});
  ASSERT_TRUE(server.ready());
  Client client(server.grpc());
  const Reply dense = client.Generate(Ask(chase, v1::ATTENTION_DENSE, 0, 0));
  EXPECT_EQ(dense.code, 0) << dense.message;
  EXPECT_EQ(Right(dense, chase), 64u);
  const Reply sixteenth = client.Generate(Ask(chase, v1::ATTENTION_DOUBLE_SPARSITY, 0, 16));
  EXPECT_EQ(Right(sixteenth, chase), 64u);
  const Reply few = client.Generate(Ask(chase, v1::ATTENTION_DOUBLE_SPARSITY, 256, 0));
  EXPECT_EQ(Right(few, chase), 64u);
  EXPECT_EQ(few.last.sparsity().budget_effective(), 256u);
  // P1: a full budget is dense attention.
  const Reply full = client.Generate(Ask(chase, v1::ATTENTION_DOUBLE_SPARSITY, 20000, 0));
  EXPECT_EQ(full.ids, dense.ids);
  // The test can fail: with the always-set alone the row is not there.
  const Reply blind = client.Generate(Ask(chase, v1::ATTENTION_DOUBLE_SPARSITY, 1, 0));
  EXPECT_LT(Right(blind, chase), 8u);
  EXPECT_EQ(server.Stop(), 0);
}

// Codes that the labels tell apart less well: a curve, and the two things that must hold of it.
TEST(ChaseTest, HardCodesAt16K) {
  ScratchDir dir;
  const Chase chase =
      MakeChase(dir.path(), {"--context", "16384", "--hops", "64", "--codes", "hard"});
  ServerProcess server({"--model", dir.path(), "--host-memory", "256M"});
  ASSERT_TRUE(server.ready());
  Client client(server.grpc());
  size_t last = 64;
  for (uint32_t denominator : {4, 8, 16, 32, 64}) {
    const Reply reply = client.Generate(Ask(chase, v1::ATTENTION_DOUBLE_SPARSITY, 0, denominator));
    ASSERT_EQ(reply.code, 0) << reply.message;
    const size_t right = Right(reply, chase);
    std::printf("hard codes, budget 1/%u: chase of %zu, %llu rows read\n", denominator, right,
                static_cast<unsigned long long>(reply.last.sparsity().rows_fetched()));
    EXPECT_LE(right, last) << "a smaller budget went further";
    last = right;
  }
  EXPECT_EQ(server.Stop(), 0);
}

TEST(ChaseTest, EveryGeometryAnswers) {
  const std::vector<std::vector<std::string>> geometries = {
      {"--dtype", "bfloat16", "--kv-heads", "2", "--group", "2"},
      {"--dtype", "float16", "--head-dim", "64", "--extra-layers", "2"},
  };
  for (auto arguments : geometries) {
    ScratchDir dir;
    arguments.insert(arguments.end(), {"--context", "2048", "--hops", "32"});
    const Chase chase = MakeChase(dir.path(), arguments);
    ServerProcess server({"--model", dir.path(), "--host-memory", "64M"});
    ASSERT_TRUE(server.ready());
    Client client(server.grpc());
    const Reply dense = client.Generate(Ask(chase, v1::ATTENTION_DENSE, 0, 0));
    EXPECT_EQ(Right(dense, chase), 32u) << arguments[1] << " " << dense.message;
    const Reply full = client.Generate(Ask(chase, v1::ATTENTION_DOUBLE_SPARSITY, 0, 1));
    EXPECT_EQ(full.ids, dense.ids) << arguments[1];
    const Reply half = client.Generate(Ask(chase, v1::ATTENTION_DOUBLE_SPARSITY, 0, 2));
    EXPECT_EQ(Right(half, chase), 32u) << arguments[1];
    EXPECT_EQ(server.Stop(), 0);
  }
}

}  // namespace
}  // namespace sparsekv
