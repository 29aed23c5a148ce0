#include <algorithm>
#include <array>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/eval/tasks/prompt_parts.h"
#include "cli/eval/tasks/tasks.h"
#include "cli/recall/seeded_random.h"

namespace sparsekv {

namespace {

namespace fs = std::filesystem;

struct Row {
  std::string question;
  std::array<std::string, 4> options;
  uint32_t right = 0;
};

absl::Status Bad(const std::string& path, size_t row, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": row ", row, ": ", what));
}

// Fields of a file of comma-separated values: quoted ones may hold commas, line breaks and doubled
// quotes.
absl::StatusOr<std::vector<std::vector<std::string>>> ParseCsv(const std::string& text,
                                                               const std::string& path) {
  std::vector<std::vector<std::string>> rows(1, std::vector<std::string>(1));
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    std::string& field = rows.back().back();
    if (quoted) {
      if (c != '"') {
        field += c;
      } else if (i + 1 < text.size() && text[i + 1] == '"') {
        field += text[++i];
      } else {
        quoted = false;
      }
    } else if (c == '"' && field.empty()) {
      quoted = true;
    } else if (c == ',') {
      rows.back().emplace_back();
    } else if (c == '\n') {
      rows.emplace_back(1);
    } else if (c != '\r') {
      field += c;
    }
  }
  if (quoted) return Bad(path, rows.size(), "a quote is not closed");
  if (rows.back().size() == 1 && rows.back()[0].empty()) rows.pop_back();
  return rows;
}

absl::StatusOr<std::vector<Row>> ReadRows(const std::string& path) {
  auto text = ReadInput(path);
  if (!text.ok()) return text.status();
  auto parsed = ParseCsv(*text, path);
  if (!parsed.ok()) return parsed.status();
  std::vector<Row> rows;
  for (size_t i = 0; i < parsed->size(); ++i) {
    const auto& fields = (*parsed)[i];
    if (fields.size() != 6) {
      return Bad(path, i + 1, absl::StrCat("has ", fields.size(), " fields and not 6"));
    }
    const std::string& answer = fields[5];
    if (answer.size() != 1 || answer[0] < 'A' || answer[0] > 'D') {
      return Bad(path, i + 1, absl::StrCat("answer \"", answer, "\" is not A, B, C or D"));
    }
    rows.push_back({fields[0],
                    {fields[1], fields[2], fields[3], fields[4]},
                    static_cast<uint32_t>(answer[0] - 'A')});
  }
  return rows;
}

std::string Ask(const Row& row) {
  std::string text = row.question;
  for (uint32_t i = 0; i < 4; ++i) {
    absl::StrAppend(&text, "\n", std::string(1, static_cast<char>('A' + i)), ". ", row.options[i]);
  }
  return text + "\nAnswer:";
}

// One question of one subject, after some that are answered.
struct Item {
  std::string place;  // for errors
  std::string told;
  Row row;
};

class Mmlu : public Task {
 public:
  Mmlu(const TaskSettings& settings, std::vector<Item> items, std::vector<uint32_t> choices)
      : settings_(settings), items_(std::move(items)), choices_(std::move(choices)) {}

  uint32_t cases() const override { return static_cast<uint32_t>(items_.size()); }

  absl::StatusOr<TaskCase> Make(uint32_t index) override {
    const Item& item = items_[index];
    TextCase text;
    text.told = item.told;
    Question question;
    question.kind = Question::Kind::kChoice;
    question.choices = choices_;
    question.right = item.row.right;
    text.asked.push_back({Ask(item.row), question});
    auto made = Tokenise(text, settings_);
    if (!made.ok()) return made.status();
    const size_t tokens = made->prefix.size() + made->questions[0].ids.size();
    if (tokens < settings_.context) return made;
    return absl::InvalidArgumentError(absl::StrCat(item.place, ": has ", tokens,
                                                   " tokens, and the context ", settings_.context,
                                                   " (--shots)"));
  }

  std::string about() const override {
    return absl::StrCat("questions of ", settings_.file, " after ", settings_.shots,
                        " that are answered; right when the right letter is the likeliest");
  }

 private:
  const TaskSettings settings_;
  const std::vector<Item> items_;
  const std::vector<uint32_t> choices_;
};

constexpr std::string_view kTestEnd = "_test.csv";
constexpr uint64_t kOrderStream = 1;

absl::StatusOr<std::vector<Item>> ReadSubject(const TaskSettings& settings,
                                              const std::string& subject) {
  const std::string path = absl::StrCat(settings.file, "/test/", subject, std::string(kTestEnd));
  auto test = ReadRows(path);
  if (!test.ok()) return test.status();
  std::vector<Row> dev;
  if (settings.shots) {
    auto read = ReadRows(absl::StrCat(settings.file, "/dev/", subject, "_dev.csv"));
    if (!read.ok()) return read.status();
    dev = *std::move(read);
  }
  std::string name = subject;
  std::ranges::replace(name, '_', ' ');
  std::string told = absl::StrCat("Questions about ", name, ", each with one right answer.\n\n");
  for (size_t i = 0; i < std::min<size_t>(settings.shots, dev.size()); ++i) {
    absl::StrAppend(&told, Ask(dev[i]), " ", std::string(1, static_cast<char>('A' + dev[i].right)),
                    "\n\n");
  }
  std::vector<Item> items;
  for (size_t i = 0; i < test->size(); ++i) {
    items.push_back({absl::StrCat(path, ": row ", i + 1), told, (*test)[i]});
  }
  return items;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Task>> MakeMmlu(const std::string&, const TaskSettings& settings) {
  std::vector<std::string> subjects;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(settings.file + "/test", error)) {
    const std::string name = entry.path().filename().string();
    if (name.ends_with(kTestEnd)) subjects.push_back(name.substr(0, name.size() - kTestEnd.size()));
  }
  if (subjects.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--file: ", settings.file, " has no test/SUBJECT_test.csv"));
  }
  std::ranges::sort(subjects);
  std::vector<Item> items;
  for (const std::string& subject : subjects) {
    auto read = ReadSubject(settings, subject);
    if (!read.ok()) return read.status();
    items.insert(items.end(), read->begin(), read->end());
  }
  // Some are the first of one order of all, so that a question's index is the same among more.
  SeededRandom(settings.seed, kOrderStream).Shuffle(items);
  if (settings.cases && items.size() > settings.cases) items.resize(settings.cases);
  std::vector<uint32_t> choices;
  for (const char* letter : {" A", " B", " C", " D"}) {
    auto ids = settings.tokenizer->Encode(letter, Tokenizer::Bos::kNone);
    if (!ids.ok()) return ids.status();
    choices.push_back(ids->back());
  }
  return std::make_unique<Mmlu>(settings, std::move(items), std::move(choices));
}

}  // namespace sparsekv
