// Generated cases: they fit, they fill, they hold their answers, and a seed gives them again.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>

#include "cli/eval/tasks/prompt_parts.h"
#include "cli/eval/tasks/task.h"

namespace sparsekv {
namespace {

const std::string kDemo = std::string(SPARSEKV_SOURCE_DIR) + "/deploy/demo";

class TasksTest : public testing::Test {
 protected:
  TasksTest() {
    files_ = *ModelFiles::Load(kDemo, "none");
    tokenizer_ = *Tokenizer::Load(kDemo);
    settings_ = {.files = &files_,
                 .tokenizer = tokenizer_.get(),
                 .context = 1024,
                 .cases = 3,
                 .questions = 2,
                 .seed = 7,
                 .hops = 4};
  }
  std::string Text(const std::vector<uint32_t>& ids) const { return tokenizer_->Decode(ids, true); }

  ModelFiles files_;
  std::unique_ptr<Tokenizer> tokenizer_;
  TaskSettings settings_;
};

TEST_F(TasksTest, CasesFitAndHoldTheirAnswers) {
  for (const char* phrasing : {"paper", "lookup"}) {
    for (const char* name :
         {"kv-retrieval", "passkey", "lines", "niah-single", "niah-multikey", "niah-multivalue",
          "niah-multiquery", "variable-tracking", "common-words", "frequent-words"}) {
      settings_.phrasing = phrasing;
      settings_.context = name == std::string("common-words") ? 4096 : 1024;
      auto task = MakeTask(name, settings_);
      if (!task.ok()) {  // has no such phrasing
        EXPECT_EQ(phrasing, std::string("lookup")) << task.status();
        continue;
      }
      std::set<std::string> texts;
      for (uint32_t i = 0; i < 3; ++i) {
        auto made = (*task)->Make(i);
        ASSERT_TRUE(made.ok()) << name << ": " << made.status();
        const std::string told = Text(made->prefix);
        texts.insert(told);
        for (const Question& question : made->questions) {
          ASSERT_FALSE(question.ids.empty());
          const size_t tokens = made->prefix.size() + question.ids.size() + question.max_new_tokens;
          EXPECT_LE(tokens, settings_.context) << name;
          EXPECT_GE(tokens, settings_.context * 9 / 10) << name;
          for (const std::string& answer : question.answers) {
            EXPECT_NE(told.find(answer), std::string::npos) << name << " " << answer;
            EXPECT_EQ(Text(question.ids).find(answer), std::string::npos) << name;
          }
        }
        auto again = (*MakeTask(name, settings_))->Make(i);
        EXPECT_EQ(again->prefix, made->prefix) << name;
      }
      EXPECT_EQ(texts.size(), 3u) << name;
    }
  }
}

// Parted, a text's ids are those that it has as a whole.
TEST_F(TasksTest, QuestionsAreTokenisedWithWhatIsTold) {
  Question question;
  TextCase text = {"The number of candle is 48213.\nIn the begin", {}};
  text.asked.push_back({"ning God created", question});
  text.asked.push_back({" was the word", question});
  auto made = Tokenise(text, settings_);
  ASSERT_TRUE(made.ok());
  for (size_t i = 0; i < 2; ++i) {
    std::vector<uint32_t> ids = made->prefix;
    ids.insert(ids.end(), made->questions[i].ids.begin(), made->questions[i].ids.end());
    EXPECT_EQ(ids, *tokenizer_->Encode(text.told + text.asked[i].text));
  }
}

// What a state keeps of a case by its index is of the same question in a wider sweep.
TEST_F(TasksTest, MoreQuestionsOfMmluBeginWithTheSame) {
  const auto dir = std::filesystem::temp_directory_path() /
                   ("sparsekv_mmlu_" + std::to_string(static_cast<unsigned>(::getpid())));
  std::filesystem::create_directories(dir / "test");
  for (const char* subject : {"law", "botany", "moral_disputes"}) {
    std::ofstream csv(dir / "test" / (std::string(subject) + "_test.csv"));
    for (int i = 0; i < 20; ++i) csv << subject << " question " << i << ",a,b,c,d,B\n";
  }
  settings_.file = dir.string();
  settings_.shots = 0;
  const auto questions = [&](uint32_t cases) {
    settings_.cases = cases;
    auto task = MakeTask("mmlu", settings_);
    EXPECT_TRUE(task.ok()) << task.status();
    std::vector<std::string> asked;
    for (uint32_t i = 0; i < (*task)->cases(); ++i) {
      asked.push_back(Text((*task)->Make(i)->questions[0].ids));
    }
    return asked;
  };
  const auto all = questions(0);
  ASSERT_EQ(all.size(), 60u);
  EXPECT_EQ(std::set<std::string>(all.begin(), all.end()).size(), 60u);
  for (uint32_t cases : {1u, 7u, 25u, 59u, 60u, 100u}) {
    const size_t some = std::min<size_t>(cases, all.size());
    const auto end = all.begin() + static_cast<std::ptrdiff_t>(some);
    EXPECT_EQ(questions(cases), std::vector<std::string>(all.begin(), end)) << cases;
  }
  const auto some = questions(25);  // of every subject
  for (const char* subject : {"law", "botany", "moral"}) {
    const auto of = [&](const std::string& q) { return q.find(subject) != std::string::npos; };
    EXPECT_GE(std::ranges::count_if(some, of), 3) << subject;
  }
  std::filesystem::remove_all(dir);
}

}  // namespace
}  // namespace sparsekv
