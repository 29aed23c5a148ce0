// `sparsekv chat` through a pipe, and `sparsekv inspect`, on copies of the demo checkpoint.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/server_process.h"

namespace sparsekv::testing {
namespace {

namespace fs = std::filesystem;

const fs::path kDemo = SPARSEKV_SOURCE_DIR "/deploy/demo";

void CopyDemo(const std::string& to) {
  for (const auto& entry : fs::directory_iterator(kDemo)) {
    if (entry.is_regular_file())
      fs::copy_file(entry.path(), fs::path(to) / entry.path().filename());
  }
}

constexpr const char* kTemplate =
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('the system speaks first') }}{% endif %}{{ m.role }}: {{ m.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";

TEST(ChatTest, ALineIsATurnAndTheConversationIsKept) {
  const ScratchDir dir;
  CopyDemo(dir.path());
  std::ofstream(dir.path() + "/chat_template.jinja") << kTemplate;
  const ServerProcess server({"--model", dir.path(), "--host-memory", "200M"});
  ASSERT_TRUE(server.ready());
  const auto chat = [&](const std::string& input) {
    return RunBinary("sparsekv", {"chat", "--grpc", server.grpc(), "--max-tokens", "8"}, input);
  };
  const CommandResult first = chat("And he said\n");
  ASSERT_EQ(first.code, 0) << first.err;
  const std::string answer = first.out.substr(0, first.out.size() - 1);

  // The second turn is what generate makes of the whole conversation so far.
  const std::string conversation =
      "user: And he said\nassistant: " + answer + "\nuser: Go on\nassistant:";
  const CommandResult expected = RunBinary(
      "sparsekv",
      {"generate", "--grpc", server.grpc(), "--max-tokens", "8", "--prompt", conversation});
  ASSERT_EQ(expected.code, 0) << expected.err;
  EXPECT_EQ(chat("And he said\nGo on\n").out, first.out + expected.out);
  EXPECT_EQ(chat("And he said\n/reset\nAnd he said\n").out, first.out + first.out);
  EXPECT_NE(chat("/system Weep.\nAnd he said\n").out, first.out);

  const CommandResult unknown = chat("And he said\n/nothing\nGo on\n");
  EXPECT_EQ(unknown.code, 1);
  EXPECT_EQ(unknown.out, first.out);
  EXPECT_EQ(unknown.err, "sparsekv: /nothing: no such command; /help lists them\n");
}

TEST(ChatTest, AModelWithoutATemplateIsSaidSo) {
  const ServerProcess server({"--model", kDemo.string(), "--host-memory", "200M"});
  ASSERT_TRUE(server.ready());
  const CommandResult result = RunBinary("sparsekv", {"chat", "--grpc", server.grpc()}, "hi\n");
  EXPECT_EQ(result.code, 1);
  EXPECT_EQ(result.err, "sparsekv: " + server.grpc() +
                            ": FAILED_PRECONDITION: the checkpoint has no chat template "
                            "(chat_template.jinja, or chat_template in tokenizer_config.json)\n");
}

TEST(InspectTest, SaysWhatIsThere) {
  const CommandResult result = RunBinary("sparsekv", {"inspect", kDemo.string(), "--json"});
  ASSERT_EQ(result.code, 0) << result.err;
  const auto report = nlohmann::json::parse(result.out);
  EXPECT_EQ(report["family"], "LlamaForCausalLM");
  EXPECT_EQ(report["kv_heads"], 2);
  EXPECT_EQ(report["channel_config"]["channels"], 32);
  EXPECT_EQ(report["channel_config"]["label_format"], "int2");
  EXPECT_EQ(report["chat"]["template"], false);
  EXPECT_TRUE(report["refused"].is_null());
  // 8 layers and 2 KV heads of 2 x 64 values in bfloat16; labels of 32 codes of 2 bits, a step and
  // a least value.
  EXPECT_EQ(report["memory"]["row_bytes_per_1000_tokens"], 1000 * 8 * 2 * 2 * 64 * 2);
  EXPECT_EQ(report["memory"]["label_bytes_per_1000_tokens"], 1000 * 8 * 2 * (32 / 4 + 4));
  EXPECT_EQ(report["memory"]["sequences_that_fit"][0]["context"], 8192);
  EXPECT_GT(report["memory"]["sequences_that_fit"][0]["gpu_24_gb"], 0);
  EXPECT_NE(RunBinary("sparsekv", {"inspect", kDemo.string()}).out.find("LlamaForCausalLM"),
            std::string::npos);
}

TEST(InspectTest, LabelsTakeWhatTheirFormatTakes) {
  const ScratchDir dir;
  CopyDemo(dir.path());
  std::ifstream file(kDemo / "channels.json");
  auto channels = nlohmann::json::parse(file);
  channels["label_format"] = "int4";
  std::ofstream(dir.path() + "/channels.json") << channels.dump();
  const CommandResult result = RunBinary("sparsekv", {"inspect", dir.path(), "--json"});
  ASSERT_EQ(result.code, 0) << result.err;
  const auto report = nlohmann::json::parse(result.out);
  EXPECT_EQ(report["channel_config"]["label_format"], "int4");
  // 32 codes of 4 bits, a step and a least value.
  EXPECT_EQ(report["memory"]["label_bytes_per_1000_tokens"], 1000 * 8 * 2 * (32 / 2 + 4));
  EXPECT_NE(RunBinary("sparsekv", {"inspect", dir.path()}).out.find("labels in int4"),
            std::string::npos);
}

TEST(InspectTest, RefusesWithServesOwnWords) {
  const auto same = [](const std::string& dir) {
    const CommandResult inspected = RunBinary("sparsekv", {"inspect", dir});
    const CommandResult served = RunBinary("sparsekv", {"serve", "--model", dir});
    EXPECT_EQ(inspected.code, 1);
    EXPECT_EQ(served.code, 1);
    EXPECT_EQ(inspected.err, served.err);
    return inspected.out;
  };
  {
    const ScratchDir dir;
    CopyDemo(dir.path());
    fs::resize_file(dir.path() + "/model.safetensors", 1000);
    EXPECT_NE(same(dir.path()).find("vocabulary 4,096"), std::string::npos);
  }
  {
    const ScratchDir dir;
    CopyDemo(dir.path());
    fs::remove(dir.path() + "/tokenizer.json");
    EXPECT_NE(same(dir.path()).find("rows in host memory"), std::string::npos);
  }
  {
    const ScratchDir dir;
    CopyDemo(dir.path());
    std::ofstream(dir.path() + "/config.json") << R"({"architectures": ["Other"]})";
    EXPECT_NE(same(dir.path()).find("family       Other"), std::string::npos);
  }
}

}  // namespace
}  // namespace sparsekv::testing
