// Where templates are looked for, and what is said when they are not there or not right.
#include "coordinator/chat/model_templates.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace sparsekv::chat {
namespace {

namespace fs = std::filesystem;

class ModelDir {
 public:
  ModelDir() {
    std::string pattern = (fs::temp_directory_path() / "chat_XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~ModelDir() { fs::remove_all(path_); }
  const ModelDir& Write(const std::string& name, const std::string& text) const {
    fs::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name) << text;
    return *this;
  }
  std::string path() const { return path_.string(); }

 private:
  fs::path path_;
};

std::string Render(const ModelDir& dir, std::string_view tools = {},
                   std::string_view messages = R"([{"role": "user"}])") {
  const auto text = ModelTemplates::Load(dir.path()).Render({.messages = messages, .tools = tools});
  if (text.ok()) return *text;
  std::string error(text.status().message());
  if (const size_t at = error.find(dir.path()); at != error.npos) {
    error.replace(at, dir.path().size(), "DIR");
  }
  return error;
}

TEST(ModelTemplates, ComeFromTheConfig) {
  const ModelDir dir;
  dir.Write("tokenizer_config.json",
            R"({"chat_template": "one {{ bos_token }}{{ eos_token }}{{ pad_token }}",
                "bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": null})");
  EXPECT_EQ(Render(dir), "one <s></s>");
  dir.Write("tokenizer_config.json",
            R"({"chat_template": [{"name": "default", "template": "plain"},
                                  {"name": "tool_use", "template": "tools"}]})");
  EXPECT_EQ(Render(dir), "plain");
  EXPECT_EQ(Render(dir, "[]"), "tools");
}

TEST(ModelTemplates, FilesComeFirst) {
  const ModelDir dir;
  dir.Write("tokenizer_config.json", R"({"chat_template": "config", "bos_token": "B"})")
      .Write("chat_template.jinja", "file {{ bos_token }}\n");
  EXPECT_EQ(Render(dir), "file B");
  dir.Write("chat_templates/tool_use.jinja", "tools");
  EXPECT_EQ(Render(dir, "[]"), "tools");
  EXPECT_EQ(Render(dir), "file B");
}

TEST(ModelTemplates, TheOlderLayoutNamesTokensElsewhere) {
  const ModelDir dir;
  dir.Write("tokenizer_config.json", R"({"chat_template": "{{ bos_token }}{{ eos_token }}",
                                         "eos_token": "E"})")
      .Write("special_tokens_map.json", R"({"bos_token": {"content": "M"}, "eos_token": "N"})");
  EXPECT_EQ(Render(dir), "MN");
}

TEST(ModelTemplates, SayWhatIsMissingOrWrong) {
  const ModelDir dir;
  const std::string none =
      "the checkpoint has no chat template (chat_template.jinja, or chat_template in "
      "tokenizer_config.json)";
  EXPECT_EQ(Render(dir), none);
  EXPECT_TRUE(absl::IsFailedPrecondition(ModelTemplates::Load(dir.path()).status()));
  dir.Write("tokenizer_config.json", "{}");
  EXPECT_EQ(Render(dir), none);
  dir.Write("tokenizer_config.json", "[]");
  EXPECT_EQ(Render(dir), "DIR/tokenizer_config.json: is not an object");
  dir.Write("tokenizer_config.json", R"({"chat_template": 1})");
  EXPECT_EQ(Render(dir), "DIR/tokenizer_config.json: chat_template: is not a text");
  dir.Write("tokenizer_config.json", R"({"chat_template": [{"name": "rag", "template": "x"}]})");
  EXPECT_EQ(Render(dir), "the checkpoint has chat templates, but none is named default");
  dir.Write("tokenizer_config.json", R"({"chat_template": "\n{% if %}"})");
  EXPECT_EQ(Render(dir),
            "DIR/tokenizer_config.json: chat_template: line 2: expected an expression, got the "
            "end of the tag");
  dir.Write("chat_template.jinja", std::string((1 << 20) + 1, 'x'));
  EXPECT_EQ(Render(dir), "DIR/chat_template.jinja: is larger than 1048576 bytes");
  dir.Write("chat_template.jinja", "x");
  EXPECT_EQ(Render(dir, {}, " [ ] "), "messages: there are none");
  EXPECT_EQ(Render(dir, {}, ""), "messages: there are none");
}

}  // namespace
}  // namespace sparsekv::chat
