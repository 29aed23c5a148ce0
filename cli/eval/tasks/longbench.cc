#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/eval/tasks/case_file.h"
#include "cli/eval/tasks/tasks.h"

namespace sparsekv {

namespace {

// How LongBench judges a data set, and how many tokens it lets an answer have.
struct Rule {
  Scoring scoring;
  uint32_t max_new_tokens;
  const char* ask;  // after context and input
};

const std::map<std::string, Rule>& Rules() {
  static constexpr char kAnswer[] = "\nAnswer in a few words.\nAnswer:";
  static constexpr char kSummary[] = "\nSummary:";
  static const std::map<std::string, Rule> rules = {
      {"narrativeqa", {Scoring::kF1, 128, kAnswer}},
      {"qasper", {Scoring::kF1, 128, kAnswer}},
      {"multifieldqa_en", {Scoring::kF1, 64, kAnswer}},
      {"hotpotqa", {Scoring::kF1, 32, kAnswer}},
      {"2wikimqa", {Scoring::kF1, 32, kAnswer}},
      {"musique", {Scoring::kF1, 32, kAnswer}},
      {"gov_report", {Scoring::kRougeL, 512, kSummary}},
      {"qmsum", {Scoring::kRougeL, 512, "\nAnswer:"}},
      {"multi_news", {Scoring::kRougeL, 512, kSummary}},
      {"trec", {Scoring::kClassification, 64, ""}},
      {"triviaqa", {Scoring::kF1, 32, ""}},
      {"samsum", {Scoring::kRougeL, 128, ""}},
      {"passage_count",
       {Scoring::kCount, 32, "\nHow many different paragraphs are there?\nThe number is"}},
      {"passage_retrieval_en",
       {Scoring::kPassage, 32, "\nWhich paragraph is this an abstract of?\nParagraph"}},
      {"lcc", {Scoring::kCodeEdit, 64, ""}},
      {"repobench-p", {Scoring::kCodeEdit, 64, ""}},
  };
  return rules;
}

struct Item {
  Rule rule;
  std::string context, input;
  std::vector<std::string> answers, classes;
};

absl::Status Bad(const std::string& path, size_t line, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ":", line, ": ", what));
}

absl::StatusOr<std::vector<std::string>> Strings(const nlohmann::json& object, const char* field,
                                                 const std::string& path, size_t line) {
  std::vector<std::string> strings;
  const auto found = object.find(field);
  if (found == object.end() || !found->is_array()) {
    return Bad(path, line, absl::StrCat(field, " is no list"));
  }
  for (const auto& value : *found) {
    if (!value.is_string()) return Bad(path, line, absl::StrCat(field, " has no strings"));
    strings.push_back(value.get<std::string>());
  }
  return strings;
}

absl::StatusOr<Item> ParseItem(const nlohmann::json& object, const std::string& path, size_t line) {
  auto dataset = StringField(object, "dataset", path, line);
  if (!dataset.ok()) return dataset.status();
  std::string name = *dataset;
  if (name.ends_with("_e")) name.resize(name.size() - 2);  // LongBench-E
  const auto rule = Rules().find(name);
  if (rule == Rules().end()) {
    return Bad(path, line, absl::StrCat("dataset \"", *dataset, "\" is not in this version"));
  }
  Item item = {.rule = rule->second};
  for (auto [field, to] : {std::pair{"context", &item.context}, {"input", &item.input}}) {
    auto value = StringField(object, field, path, line);
    if (!value.ok()) return value.status();
    *to = *std::move(value);
  }
  auto answers = Strings(object, "answers", path, line);
  if (!answers.ok()) return answers.status();
  if (answers->empty()) return Bad(path, line, "answers is empty");
  item.answers = *std::move(answers);
  const auto classes = object.find("all_classes");
  if (classes != object.end() && !classes->is_null()) {
    auto listed = Strings(object, "all_classes", path, line);
    if (!listed.ok()) return listed.status();
    item.classes = *std::move(listed);
  }
  return item;
}

class LongBench : public Task {
 public:
  LongBench(const TaskSettings& settings, std::vector<Item> items)
      : settings_(settings), items_(std::move(items)) {}

  uint32_t cases() const override { return static_cast<uint32_t>(items_.size()); }

  // What is too long loses its middle, as LongBench does it.
  absl::StatusOr<TaskCase> Make(uint32_t index) override {
    const Item& item = items_[index];
    auto made = Tokenise(Text(item, item.context), settings_);
    if (!made.ok()) return made.status();
    const size_t after = made->questions[0].ids.size() + made->questions[0].max_new_tokens;
    if (after >= settings_.context) {
      return Bad(settings_.file, index + 1, "input alone does not fit the context");
    }
    if (made->prefix.size() + after <= settings_.context) return made;
    std::vector<uint32_t>& prefix = made->prefix;
    const size_t room = settings_.context - after, head = room / 2, tail = room - head;
    std::vector<uint32_t> kept(prefix.begin(), prefix.begin() + static_cast<ptrdiff_t>(head));
    kept.insert(kept.end(), prefix.end() - static_cast<ptrdiff_t>(tail), prefix.end());
    prefix = std::move(kept);
    return made;
  }

  std::string about() const override {
    return absl::StrCat("cases of ", settings_.file,
                        ", scored by their data set's own rule; too long ones lose their middle");
  }

 private:
  TextCase Text(const Item& item, const std::string& context) const {
    Question question;
    question.scoring = item.rule.scoring;
    question.max_new_tokens =
        settings_.max_new_tokens ? settings_.max_new_tokens : item.rule.max_new_tokens;
    question.answers = item.answers;
    question.classes = item.classes;
    TextCase made;
    made.told = context;
    // Code goes on where it ends; everything else is asked in a paragraph of its own.
    const bool code = item.rule.scoring == Scoring::kCodeEdit;
    std::string ask = absl::StrCat(code ? "" : "\n\n", item.input, item.rule.ask);
    made.asked.push_back({ask.empty() ? std::string(1, '\n') : std::move(ask), question});
    return made;
  }

  const TaskSettings settings_;
  const std::vector<Item> items_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Task>> MakeLongBench(const std::string&,
                                                    const TaskSettings& settings) {
  if (settings.file.empty()) {
    return absl::InvalidArgumentError("--file: longbench needs one of its data sets, JSONL");
  }
  auto objects = ReadJsonLines(settings.file);
  if (!objects.ok()) return objects.status();
  std::vector<Item> items;
  for (size_t i = 0; i < objects->size(); ++i) {
    if (settings.cases && items.size() == settings.cases) break;
    auto item = ParseItem((*objects)[i], settings.file, i + 1);
    if (!item.ok()) return item.status();
    items.push_back(*std::move(item));
  }
  return std::make_unique<LongBench>(settings, std::move(items));
}

}  // namespace sparsekv
