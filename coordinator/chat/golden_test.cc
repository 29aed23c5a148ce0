// Our own small templates, which use what models' templates use, against what transformers renders
// (tests/golden/compare_chat_templates.py --write).
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "coordinator/chat/template.h"

namespace sparsekv::chat {
namespace {

const std::string kFolder = SPARSEKV_SOURCE_DIR "/tests/golden/chat_templates/";

std::string ReadText(const std::string& name) {
  std::ifstream file(kFolder + name, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  EXPECT_TRUE(file.good()) << name;
  return std::move(text).str();
}

const char* Name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kSyntax:
      return "syntax";
    case ErrorKind::kUnsupported:
      return "unsupported";
    case ErrorKind::kRaised:
      return "raised";
    case ErrorKind::kUndefined:
      return "undefined";
    case ErrorKind::kRuntime:
      return "runtime";
    case ErrorKind::kLimit:
      break;
  }
  return "limit";
}

TEST(Golden, EveryConversationIsAsTransformersRendersIt) {
  const nlohmann::json goldens = nlohmann::json::parse(ReadText("goldens.json"));
  const auto& conversations = goldens.at("conversations");
  ASSERT_GE(conversations.size(), 20u);
  for (const auto& golden : goldens.at("goldens")) {
    const std::string name = golden.at("template");
    const auto parsed = Template::Parse(ReadText(name));
    ASSERT_TRUE(parsed.ok()) << name << ": " << parsed.status();
    for (size_t i = 0; i < conversations.size(); ++i) {
      const std::string messages = conversations[i].at("messages");
      const std::string tools = conversations[i].at("tools");
      const std::string variables = conversations[i].at("variables");
      ErrorKind kind = ErrorKind::kSyntax;
      const auto text =
          (*parsed)->Render({.messages = messages,
                             .tools = tools,
                             .variables = variables,
                             .add_generation_prompt = conversations[i].at("add_generation_prompt")},
                            &kind);
      const auto& expected = golden.at("results")[i];
      if (expected.contains("text")) {
        ASSERT_TRUE(text.ok()) << name << " " << i << ": " << text.status();
        EXPECT_EQ(*text, expected.at("text").get<std::string>()) << name << " " << i;
      } else {
        ASSERT_FALSE(text.ok()) << name << " " << i << ": " << *text;
        EXPECT_EQ(Name(kind), expected.at("kind").get<std::string>())
            << name << " " << i << ": " << text.status();
        const std::string message = expected.value("error", "");
        EXPECT_TRUE(std::string(text.status().message()).ends_with(message)) << name << " " << i;
      }
    }
  }
}

}  // namespace
}  // namespace sparsekv::chat
