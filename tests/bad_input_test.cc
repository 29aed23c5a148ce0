// Bad input of every kind, from outside: one line or status that names the field or file and the
// value, and nothing changed.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>

#include "tests/client.h"
#include "tests/server_process.h"

namespace sparsekv {
namespace {

namespace fs = std::filesystem;
using testing::Client;
using testing::CommandResult;
using testing::Reply;
using testing::RunBinary;
using testing::ScratchDir;
using testing::ServerProcess;
using testing::TextRequest;

const std::string kDemo = std::string(SPARSEKV_SOURCE_DIR) + "/deploy/demo";
constexpr int kInvalidArgument = 3, kResourceExhausted = 8, kFailedPrecondition = 9;

class BadRequestTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    server_ = new ServerProcess({"--model", kDemo, "--host-memory", "16M"});
    ASSERT_TRUE(server_->ready());
  }
  static void TearDownTestSuite() {
    EXPECT_EQ(server_->Metric("sparsekv_host_kv_bytes{state=\"used\"}"), 0);
    EXPECT_EQ(server_->Stop(), 0);
    delete server_;
  }
  void Expect(const v1::GenerateRequest& request, int code, std::vector<std::string> words) {
    const Reply reply = Client(server_->grpc()).Generate(request);
    EXPECT_EQ(reply.code, code) << reply.message;
    for (const std::string& word : words) {
      EXPECT_NE(reply.message.find(word), std::string::npos)
          << "\"" << word << "\" is not in: " << reply.message;
    }
    EXPECT_EQ(reply.message.find('\n'), std::string::npos);
    EXPECT_TRUE(reply.ids.empty());
  }
  static ServerProcess* server_;
};
ServerProcess* BadRequestTest::server_ = nullptr;

TEST_F(BadRequestTest, Prompts) {
  Expect({}, kInvalidArgument, {"prompt"});
  Expect(TextRequest("", 5), kInvalidArgument, {"prompt", "empty"});
  Expect(testing::IdsRequest({}, 5), kInvalidArgument, {"prompt", "empty"});
  Expect(testing::IdsRequest({1, 2, 4096}, 5), kInvalidArgument, {"token_ids", "4096"});
  Expect(TextRequest("In the beginning", 9000), kInvalidArgument,
         {"max_new_tokens", "9000", "8192"});
}

TEST_F(BadRequestTest, WhatCanNeverFitIsRefusedAtOnce) {
  Expect(TextRequest("In the beginning", 8000), kResourceExhausted, {"tokens"});
}

TEST_F(BadRequestTest, Numbers) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  auto with = [](auto change) {
    auto request = TextRequest("In the", 5);
    change(request);
    return request;
  };
  using Request = v1::GenerateRequest;
  Expect(with([](Request& r) { r.mutable_budget()->set_rows(0); }), kInvalidArgument, {"budget"});
  Expect(with([](Request& r) { r.mutable_budget()->set_fraction_denominator(0); }),
         kInvalidArgument, {"budget"});
  Expect(with([](Request& r) { r.set_recall_target(1.5); }), kInvalidArgument,
         {"recall_target", "1.5"});
  Expect(with([](Request& r) { r.set_temperature(-1); }), kInvalidArgument, {"temperature", "-1"});
  Expect(with([&](Request& r) { r.set_temperature(nan); }), kInvalidArgument, {"temperature"});
  Expect(with([](Request& r) { r.set_top_p(2); }), kInvalidArgument, {"top_p", "2"});
  Expect(with([&](Request& r) { r.set_top_p(nan); }), kInvalidArgument, {"top_p"});
  Expect(with([](Request& r) { r.set_logprobs(21); }), kInvalidArgument, {"logprobs", "21"});
  Expect(with([](Request& r) { r.add_stop(""); }), kInvalidArgument, {"stop"});
  Expect(with([](Request& r) { r.set_attention(static_cast<v1::Attention>(7)); }), kInvalidArgument,
         {"attention", "7"});
  Expect(with([](Request& r) { r.set_request_id(std::string(500, 'x')); }), kInvalidArgument,
         {"request_id"});
}

TEST(NoChannelsTest, SelectionNeedsAChannelConfig) {
  ServerProcess server({"--model", kDemo, "--host-memory", "16M", "--channels", "none"});
  ASSERT_TRUE(server.ready());
  Client client(server.grpc());
  auto request = TextRequest("In the", 4);
  EXPECT_EQ(client.Generate(request).code, 0);  // dense by default then
  request.set_attention(v1::ATTENTION_DOUBLE_SPARSITY);
  const Reply reply = client.Generate(request);
  EXPECT_EQ(reply.code, kFailedPrecondition) << reply.message;
  EXPECT_EQ(server.Stop(), 0);
}

// A copy of deploy/demo that a test may damage.
class DamagedDemo {
 public:
  DamagedDemo() {
    for (const auto& entry : fs::directory_iterator(kDemo)) {
      if (entry.path().extension() == ".safetensors") {
        fs::create_symlink(entry.path(), dir_.path() / entry.path().filename());
      } else if (entry.path().extension() == ".json") {
        fs::copy(entry.path(), dir_.path() / entry.path().filename());
      }
    }
  }
  std::string path() const { return dir_.path(); }
  std::string File(const std::string& name) const { return path() + "/" + name; }
  void Replace(const std::string& name, const std::string& from, const std::string& to) {
    std::ifstream in(File(name));
    std::ostringstream text;
    text << in.rdbuf();
    std::string s = text.str();
    const size_t at = s.find(from);
    ASSERT_NE(at, std::string::npos) << from << " is not in " << name;
    std::ofstream(File(name)) << s.replace(at, from.size(), to);
  }
  void Write(const std::string& name, const std::string& text) {
    fs::remove(File(name));
    std::ofstream(File(name), std::ios::binary) << text;
  }

 private:
  struct Dir : ScratchDir {
    fs::path path() const { return ScratchDir::path(); }
  } dir_;
};

// `sparsekv serve` must refuse, in one line that holds every word, and leave no file behind.
void ExpectRefused(std::vector<std::string> arguments, const std::vector<std::string>& words,
                   int code = 1) {
  arguments.insert(arguments.begin(), {"serve", "--grpc", "127.0.0.1:0", "--http", "off"});
  const CommandResult result = RunBinary("sparsekv", arguments);
  EXPECT_EQ(result.code, code) << result.err;
  EXPECT_EQ(result.out, "");
  for (const std::string& word : words) {
    EXPECT_NE(result.err.find(word), std::string::npos)
        << "\"" << word << "\" is not in: " << result.err;
  }
  if (code == 1) {
    EXPECT_EQ(std::ranges::count(result.err, '\n'), 1) << result.err;
  }
}

TEST(BadOptionTest, OfRowsAndPredictions) {
  ExpectRefused({"--model", kDemo, "--link", "fast"}, {"--link", "fast"});
  ExpectRefused({"--model", kDemo, "--correction", "none"}, {"--correction none", "--predict on"});
  ExpectRefused({"--model", kDemo, "--fetch", "gather"}, {"--fetch gather", "--predict on"});
  ExpectRefused({"--model", kDemo, "--placement", "resident", "--hot-rows", "64"},
                {"--hot-rows 64"});
  ExpectRefused({"--model", kDemo, "--predict", "on", "--correction", "none"},
                {"--placement offload"});
  ExpectRefused({"--model", kDemo, "--placement", "resident", "--mirror-rows"},
                {"--mirror-rows", "--placement resident"});
  ExpectRefused({"--model", kDemo, "--backend", "cpu", "--mirror-rows"},
                {"--mirror-rows: needs --backend cuda"});
  ExpectRefused({"--model", kDemo, "--hot-rows", "0x100"}, {"--hot-rows", "0x100"});
  ExpectRefused({"--model", kDemo, "--hot-rows", "99999"}, {"--hot-rows", "99999"}, 2);
  ExpectRefused({"--model", kDemo, "--hot-rows", "256", "--device-memory", "4M"},
                {"device memory", "4194304"});
}

TEST(BadCheckpointTest, Files) {
  ExpectRefused({"--model", "/nonexistent"}, {"/nonexistent"});
  {
    DamagedDemo demo;
    demo.Write("model.safetensors", "short");
    ExpectRefused({"--model", demo.path()}, {"model.safetensors"});
  }
  {
    DamagedDemo demo;
    demo.Write("model.safetensors", std::string(8, '\xff') + "{}");
    ExpectRefused({"--model", demo.path()}, {"model.safetensors", "header"});
  }
  {
    DamagedDemo demo;
    demo.Write("model.safetensors", std::string("\x02\0\0\0\0\0\0\0{}", 10));
    ExpectRefused({"--model", demo.path()},
                  {"model.embed_tokens.weight", "model.layers.7.mlp.down_proj.weight"});
  }
  {
    DamagedDemo demo;
    demo.Write("tokenizer.json", "{\"model\": {\"type\": \"Unigram\"}}");
    ExpectRefused({"--model", demo.path()}, {"tokenizer.json"});
  }
  {
    DamagedDemo demo;
    demo.Write("tokenizer.json", "not json");
    ExpectRefused({"--model", demo.path()}, {"tokenizer.json"});
  }
}

TEST(BadCheckpointTest, Config) {
  DamagedDemo architecture;
  architecture.Replace("config.json", "LlamaForCausalLM", "MambaForCausalLM");
  ExpectRefused({"--model", architecture.path()}, {"config.json", "MambaForCausalLM"});
  DamagedDemo rope;
  rope.Replace("config.json", "\"rope_scaling\": null",
               "\"rope_scaling\": {\"rope_type\": \"spiral\", \"factor\": 2.0}");
  ExpectRefused({"--model", rope.path()}, {"config.json", "spiral"});
  DamagedDemo shape;
  shape.Replace("config.json", "\"intermediate_size\": ", "\"intermediate_size\": 1");
  ExpectRefused({"--model", shape.path()}, {"mlp", "shape"});
}

TEST(BadCheckpointTest, Channels) {
  DamagedDemo demo;
  std::ifstream in(demo.File("channels.json"));
  std::ostringstream text;
  text << in.rdbuf();
  const size_t at = text.str().find("\"fingerprint\":") + 14;
  const size_t quote = text.str().find('"', at) + 1;
  std::string other = text.str();
  other.replace(quote, 4, other.substr(quote, 4) == "0000" ? "1111" : "0000");
  demo.Write("channels.json", other);
  ExpectRefused({"--model", demo.path()}, {"channels.json", "fingerprint"});
  ExpectRefused({"--model", kDemo, "--channels", "/nonexistent.json"}, {"/nonexistent.json"});
}

TEST(BadOptionsTest, Values) {
  ExpectRefused({"--model", kDemo, "--host-memory", "4k"}, {"--host-memory", "4096"});
  ExpectRefused({"--model", kDemo, "--host-memory", "4000000G"}, {"--host-memory", "available"});
  ExpectRefused({"--model", kDemo, "--device-memory", "64k"}, {"device memory", "65536"});
  ExpectRefused({"--model", kDemo, "--backend", "cuda"}, {"--backend", "cuda"});
  ExpectRefused({}, {"--model"});
  ExpectRefused({"--model", kDemo, "--workers", "x"}, {"--workers"}, 2);
  ExpectRefused({"--model", kDemo, "--no-such-option"}, {"--no-such-option"}, 2);
  ExpectRefused({"--model", kDemo, "--state", "/proc/nothing"}, {"--state", "/proc/nothing"});
}

TEST(BadOptionsTest, ConfigFile) {
  ScratchDir dir;
  const std::string path = dir.path() + "/c.toml";
  std::ofstream(path) << "model = \"" << kDemo << "\"\nworkerz = 1\n";
  ExpectRefused({"--config", path}, {path, "workerz"});
  std::ofstream(path) << "model = \"" << kDemo << "\"\nworkers = 99\n";
  ExpectRefused({"--config", path}, {path, "workers", "99"});
  std::ofstream(path) << "model = \n";
  ExpectRefused({"--config", path}, {path});
}

TEST(BadOptionsTest, PortAndStateInUse) {
  ScratchDir state;
  ServerProcess server({"--model", kDemo, "--host-memory", "16M", "--state", state.path()});
  ASSERT_TRUE(server.ready());
  CommandResult second = RunBinary("sparsekv", {"serve", "--model", kDemo, "--host-memory", "16M",
                                                "--grpc", server.grpc(), "--http", "off"});
  EXPECT_EQ(second.code, 1);
  EXPECT_NE(second.err.find(server.grpc()), std::string::npos) << second.err;
  ExpectRefused({"--model", kDemo, "--host-memory", "16M", "--state", state.path()},
                {"--state", state.path()});
  EXPECT_EQ(Client(server.grpc()).Generate(TextRequest("In the", 3)).code, 0);
  EXPECT_EQ(server.Stop(), 0);
}

TEST(BadCommandTest, CommandLine) {
  auto expect = [](const std::vector<std::string>& arguments, int code, const std::string& word) {
    const CommandResult result = RunBinary("sparsekv", arguments);
    EXPECT_EQ(result.code, code) << result.err;
    EXPECT_NE((result.out + result.err).find(word), std::string::npos) << result.err;
  };
  ScratchDir dir;
  const std::string out = dir.path() + "/x.npy";
  expect({}, 2, "subcommand");
  expect({"serve", "--help"}, 0, "--host-memory");
  expect({"frobnicate"}, 2, "frobnicate");
  expect({"eval"}, 2, "--model is required");
  expect({"generate"}, 2, "prompt");
  expect({"generate", "--prompt", "a", "--token-ids", "1"}, 2, "prompt");
  expect({"generate", "--grpc", "127.0.0.1:1", "--prompt", "a"}, 1, "127.0.0.1:1");
  expect({"generate", "--token-ids", "1,x"}, 1, "x");
  expect({"generate", "--prompt", "a", "--budget", "1/0"}, 1, "1/0");
  expect({"generate", "--prompt-file", "/nonexistent"}, 1, "/nonexistent");
  expect({"tokenize", "--model", "/nonexistent"}, 1, "/nonexistent");
  expect({"logits", "--model", kDemo, "--token-ids", "1,99999", "--out", out}, 1, "99999");
  expect({"logits", "--model", kDemo, "--token-ids", "1", "--out", "/nonexistent/x.npy"}, 1,
         "/nonexistent/x.npy");
  expect({"calibrate", "--model", kDemo, "--text", "/nonexistent", "--out", out}, 1,
         "/nonexistent");
  EXPECT_FALSE(fs::exists(out));
  expect({"bench", "decode", "--link", "1,2"}, 2, "1,2");
  expect({"bench", "decode", "--shape", "tiny", "--trace", "/nonexistent"}, 1, "/nonexistent");
  expect({"bench", "decode", "--model", kDemo}, 2, "--text");
  expect({"bench", "decode", "--shape", "tiny", "--label-channels", "65"}, 1,
         "--label-channels: 65 is more than head_dim 64 of tiny");
  expect({"bench", "decode", "--label-channels", "257"}, 2, "--label-channels");
  expect({"bench", "decode", "--model", kDemo, "--text", out, "--label-format", "int4"}, 2,
         "--label-format");
  for (const std::string bench : {"kernels", "decode"}) {
    expect({"bench", bench, "--label-format", "int3"}, 2, "int3");
    expect({"bench", bench, "--label-channels", "0"}, 2, "--label-channels");
  }
  expect({"bench", "kernels", "--label-channels", "65"}, 2, "--label-channels");
  // And ones that work, of little.
  expect({"bench",          "decode", "--shape",          "tiny",
          "--label-format", "int4",   "--label-channels", "16",
          "--context",      "1024",   "--budget",         "128",
          "--steps",        "2",      "--warmup",         "2",
          "--predict",      "off",    "--hot-rows",       "off",
          "--json"},
         0, "decode/no hot/int4 labels");
  // 12 bytes of each of 131,072 tokens and 8 KV heads.
  expect({"bench", "kernels", "--filter", "score_labels", "--rounds", "1", "--label-format", "int4",
          "--label-channels", "16", "--json"},
         0, "\"bytes\":12582912.0");
  expect({"bench", "decode", "--shape", "tiny", "--context", "1024", "--budget", "128", "--steps",
          "2", "--warmup", "2", "--json"},
         0, "\"hidden_share\"");
}

}  // namespace
}  // namespace sparsekv
