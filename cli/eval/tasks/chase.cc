#include "absl/strings/str_cat.h"
#include "cli/eval/tasks/tasks.h"
#include "cli/recall/recall_codes.h"
#include "cli/recall/recall_prompt.h"
#include "cli/recall/recall_tokenizer.h"

namespace sparsekv {

namespace {

class ChaseTask : public Task {
 public:
  explicit ChaseTask(const TaskSettings& settings) : settings_(settings) {}

  uint32_t cases() const override { return settings_.cases; }

  absl::StatusOr<TaskCase> Make(uint32_t index) override {
    RecallPrompt chase = MakeRecallPrompt(settings_.context - settings_.hops, settings_.hops,
                                          settings_.seed + index);
    TaskCase made;
    Question question;
    question.kind = Question::Kind::kChase;
    question.ids = {chase.prompt.back()};
    question.targets = std::move(chase.expected);
    question.max_new_tokens = settings_.hops;
    chase.prompt.pop_back();
    made.prefix = std::move(chase.prompt);
    made.questions.push_back(std::move(question));
    return made;
  }

  std::string about() const override {
    return absl::StrCat("a chase of ", settings_.hops, " pointers through ",
                        settings_.context - settings_.hops,
                        " tokens; share of them followed before the first wrong one");
  }

 private:
  const TaskSettings settings_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Task>> MakeChase(const std::string&, const TaskSettings& settings) {
  const auto refuse = [](const std::string& what) { return absl::InvalidArgumentError(what); };
  // Its tokenizer tells such a checkpoint from another of as many tokens.
  const uint32_t last = kRecallVocab - 1;
  if (settings.files->config.vocab_size != kRecallVocab ||
      settings.tokenizer->Decode({&last, 1}, false) != RecallTokenText(last)) {
    return refuse("--task chase: the model is not one that `sparsekv recall` made");
  }
  if (settings.cases == 0) return refuse("--cases: chase needs a number");
  if (settings.hops == 0 || settings.context < 256 ||
      settings.hops >= RecallPairs(settings.context - settings.hops)) {
    return refuse(absl::StrCat("--hops: ", settings.hops, " are not 1 or more, or too many for ",
                               settings.context, " tokens"));
  }
  return std::make_unique<ChaseTask>(settings);
}

}  // namespace sparsekv
