#include <algorithm>

#include "absl/strings/str_cat.h"
#include "cli/eval/tasks/case_file.h"
#include "cli/eval/tasks/haystack.h"
#include "cli/eval/tasks/prompt_parts.h"
#include "cli/eval/tasks/tasks.h"
#include "cli/eval/tasks/words.h"

namespace sparsekv {

namespace {

constexpr uint64_t kStream = 11;

// How keys and values are told and asked for.
struct Phrasing {
  std::string begin, line_begin, line_middle, line_end, end;
  std::string ask_begin, ask_end;
  std::string joint;  // between the words of a key

  std::string Line(const std::string& key, const std::string& value) const {
    return absl::StrCat(line_begin, key, line_middle, value, line_end);
  }
  std::string Ask(const std::string& key) const { return absl::StrCat(ask_begin, key, ask_end); }
};

// As deploy/demo was trained.
Phrasing LookupPhrasing() {
  return {.line_begin = "The number of ",
          .line_middle = " is ",
          .line_end = ".\n",
          .ask_begin = "The number of ",
          .ask_end = " is",
          .joint = " "};
}

Phrasing PhrasingOf(const std::string& name, bool lookup) {
  if (lookup) return LookupPhrasing();
  if (name == "kv-retrieval") {
    return {.begin = "One value of this JSON object will be asked for.\n\n{\n",
            .line_begin = "\"",
            .line_middle = "\": \"",
            .line_end = "\",\n",
            .end = "}\n\n",
            .ask_begin = "The value of \"",
            .ask_end = "\" is \""};
  }
  return {.begin = "Each line has a name and a number. One of the numbers will be asked for.\n\n",
          .line_begin = "line ",
          .line_middle = ": REGISTER_CONTENT is <",
          .line_end = ">\n",
          .end = "\n",
          .ask_begin = "Again, the content of line ",
          .ask_end = ": REGISTER_CONTENT is <",
          .joint = "-"};
}

// A context full of keys and values, as long as it may be; some keys are asked.
class Records : public Task {
 public:
  Records(const std::string& name, const TaskSettings& settings)
      : name_(name), settings_(settings), lookup_(settings.phrasing == "lookup") {}

  uint32_t cases() const override { return settings_.cases; }

  absl::StatusOr<TaskCase> Make(uint32_t index) override {
    const uint32_t least = std::max(settings_.questions, 1u);
    auto room = TokensFor(lookup_            ? " 00000"
                          : name_ == "lines" ? "00000"
                                             : DrawValue(0),
                          settings_);
    if (!room.ok()) return room.status();
    return FitToContext(settings_, least, [&](uint32_t size) { return Case(index, size, *room); });
  }

  std::string about() const override {
    return absl::StrCat("a context full of keys and values, ", settings_.questions,
                        " of them asked; right when the value is in the answer");
  }

 private:
  std::string DrawValue(uint64_t seed) const {
    SeededRandom random(seed, kStream + 2);
    return DrawUuid(random);
  }

  TextCase Case(uint32_t index, uint32_t size, uint32_t room) const {
    SeededRandom random(settings_.seed + index, kStream);
    const Phrasing phrasing = PhrasingOf(name_, lookup_);
    const bool uuids = name_ == "kv-retrieval" && !lookup_;
    size = std::min(size, MostKeys() / 2);
    std::vector<std::string> keys;
    if (uuids) {
      for (uint32_t i = 0; i < size; ++i) keys.push_back(DrawUuid(random));
    } else {
      keys = name_ == "lines" ? DrawPairs(size, phrasing.joint, random)
                              : DrawKeys(size, phrasing.joint, random);
    }
    std::vector<std::string> values;
    TextCase made;
    made.told = phrasing.begin;
    for (const std::string& key : keys) {
      values.push_back(uuids ? DrawUuid(random) : DrawNumber(5, random));
      made.told += phrasing.Line(key, values.back());
    }
    made.told += phrasing.end;
    std::vector<uint32_t> asked(size);
    for (uint32_t i = 0; i < size; ++i) asked[i] = i;
    random.Shuffle(asked);
    for (uint32_t i = 0; i < std::min(size, settings_.questions); ++i) {
      Question question;
      question.max_new_tokens = room;
      question.answers = {values[asked[i]]};
      made.asked.push_back({phrasing.Ask(keys[asked[i]]), question});
    }
    return made;
  }

  const std::string name_;
  const TaskSettings settings_;
  const bool lookup_;
};

// One number somewhere in hay.
class Passkey : public Task {
 public:
  Passkey(const TaskSettings& settings, Haystack hay) : settings_(settings), hay_(std::move(hay)) {}

  uint32_t cases() const override { return settings_.cases; }

  absl::StatusOr<TaskCase> Make(uint32_t index) override {
    const bool lookup = settings_.phrasing == "lookup";
    auto room = TokensFor(" 00000", settings_);
    if (!room.ok()) return room.status();
    return FitToContext(settings_, 1, [&](uint32_t size) {
      SeededRandom random(settings_.seed + index, kStream + 1);
      const std::string number = DrawNumber(5, random), key = DrawKeys(1, " ", random)[0];
      const std::string needle =
          lookup ? LookupPhrasing().Line(key, number)
                 : absl::StrCat("The pass key is ", number, ". Remember it: ", number, ".\n");
      const double depth = static_cast<double>(random.Below(1001)) / 1000;
      Question question;
      question.max_new_tokens = *room;
      question.answers = {number};
      TextCase made;
      made.told = hay_.With({{needle, depth}}, size, random.Next() >> 16);
      made.asked.push_back(
          {lookup ? LookupPhrasing().Ask(key) : "What is the pass key? The pass key is", question});
      return made;
    });
  }

  std::string about() const override {
    return absl::StrCat("one number in ",
                        settings_.text_file.empty() ? "idle sentences" : settings_.text_file,
                        "; right when it is in the answer");
  }

 private:
  const TaskSettings settings_;
  const Haystack hay_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Task>> MakeLookups(const std::string& name,
                                                  const TaskSettings& settings) {
  if (!settings.file.empty()) return MakeCaseFile(name, settings);
  if (settings.cases == 0) {
    return absl::InvalidArgumentError(absl::StrCat("--cases: ", name, " needs a number"));
  }
  if (name != "passkey") return std::make_unique<Records>(name, settings);
  auto hay = Haystack::Make(settings);
  if (!hay.ok()) return hay.status();
  return std::make_unique<Passkey>(settings, *std::move(hay));
}

}  // namespace sparsekv
