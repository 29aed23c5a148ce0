#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/eval/tasks/haystack.h"
#include "cli/eval/tasks/prompt_parts.h"
#include "cli/eval/tasks/tasks.h"
#include "cli/eval/tasks/words.h"

namespace sparsekv {

namespace {

constexpr uint64_t kStream = 21;
constexpr uint32_t kDigits = 7;

// RULER's needles in a haystack: keys with numbers, some or all of them asked.
class Needles : public Task {
 public:
  Needles(const std::string& name, const TaskSettings& settings, Haystack hay)
      : name_(name), settings_(settings), hay_(std::move(hay)) {}

  uint32_t cases() const override { return settings_.cases; }

  absl::StatusOr<TaskCase> Make(uint32_t index) override {
    auto room = TokensFor(" 0000000,", settings_);
    if (!room.ok()) return room.status();
    return FitToContext(settings_, std::max(settings_.needles, 1u),
                        [&](uint32_t size) { return Case(index, size, *room); });
  }

  std::string about() const override {
    const std::string hay = settings_.haystack == "needles" ? "other needles"
                            : settings_.text_file.empty()   ? "idle sentences"
                                                            : settings_.text_file;
    return absl::StrCat(name_ == "niah-single" ? 1 : settings_.needles, " needles in ", hay,
                        "; share of the asked numbers that the answer has");
  }

 private:
  bool lookup() const { return settings_.phrasing == "lookup"; }

  std::string Line(const std::string& key, const std::string& number) const {
    return absl::StrCat(lookup() ? "The number of " : "The special number of ", key, " is ", number,
                        ".\n");
  }

  TextCase Case(uint32_t index, uint32_t size, uint32_t room) const {
    SeededRandom random(settings_.seed + index, kStream);
    const bool only_needles = settings_.haystack == "needles";
    const uint32_t most = MostKeys() / 2;
    const uint32_t wanted = name_ == "niah-single" ? 1 : settings_.needles;
    const uint32_t count = only_needles ? std::clamp(size, wanted, most) : wanted;
    const bool one_key = name_ == "niah-multivalue";
    auto keys = DrawKeys(count, lookup() ? " " : "-", random);
    std::vector<std::string> numbers;
    std::vector<Haystack::Needle> needles;
    for (uint32_t i = 0; i < count; ++i) {
      if (one_key && i < wanted) keys[i] = keys[0];
      numbers.push_back(DrawNumber(lookup() ? 5 : kDigits, random));
      needles.push_back(
          {Line(keys[i], numbers[i]), static_cast<double>(random.Below(1001)) / 1000});
    }
    TextCase made;
    if (!lookup())
      made.told = "Some special numbers stand in this text. They will be asked for.\n\n";
    made.told += hay_.With(std::move(needles), only_needles ? 0 : size, random.Next() >> 16);
    Ask(keys, numbers, wanted, room, &made);
    return made;
  }

  void Ask(const std::vector<std::string>& keys, const std::vector<std::string>& numbers,
           uint32_t wanted, uint32_t room, TextCase* made) const {
    const bool all = name_ == "niah-multivalue" || name_ == "niah-multiquery";
    const uint32_t asked = all ? wanted : 1;
    Question question;
    if (lookup()) {  // one after the other
      for (uint32_t i = 0; i < asked; ++i) {
        question.answers = {numbers[i]};
        question.max_new_tokens = room;
        made->asked.push_back({absl::StrCat("The number of ", keys[i], " is"), question});
      }
      return;
    }
    question.answers.assign(numbers.begin(), numbers.begin() + asked);
    question.max_new_tokens = room * asked;
    const std::string who = name_ == "niah-multiquery"
                                ? absl::StrJoin(keys.begin(), keys.begin() + asked, ", ")
                                : keys[0];
    made->asked.push_back({absl::StrCat("\nThe special number", asked > 1 ? "s" : "", " of ", who,
                                        asked > 1 ? " are" : " is"),
                           question});
  }

  const std::string name_;
  const TaskSettings settings_;
  const Haystack hay_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Task>> MakeNeedles(const std::string& name,
                                                  const TaskSettings& settings) {
  if (settings.cases == 0) {
    return absl::InvalidArgumentError(absl::StrCat("--cases: ", name, " needs a number"));
  }
  if (settings.needles == 0 || settings.needles > MostKeys() / 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("--needles: ", settings.needles, " is not in 1..", MostKeys() / 2));
  }
  if (name == "niah-multivalue" && settings.phrasing == "lookup") {
    return absl::InvalidArgumentError("--phrasing lookup: niah-multivalue has no such phrasing");
  }
  auto hay = Haystack::Make(settings);
  if (!hay.ok()) return hay.status();
  return std::make_unique<Needles>(name, settings, *std::move(hay));
}

}  // namespace sparsekv
