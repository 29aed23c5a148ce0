#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/eval/tasks/haystack.h"
#include "cli/eval/tasks/prompt_parts.h"
#include "cli/eval/tasks/tasks.h"
#include "cli/eval/tasks/words.h"

namespace sparsekv {

namespace {

constexpr uint64_t kStream = 31;
constexpr uint32_t kCommonWords = 10, kCommonTimes = 30, kRareTimes = 3;
constexpr uint32_t kFrequentWords = 3;
constexpr double kZetaExponent = 2.0;

// A number is given to a variable, that to the next, and so on, strewn over hay in this order.
TextCase VariableCase(const TaskSettings& settings, const Haystack& hay, SeededRandom& random,
                      uint32_t size) {
  const std::string value = DrawNumber(5, random);
  Question question;
  std::vector<double> depths;
  for (uint32_t i = 0; i <= settings.hops; ++i) {
    question.answers.push_back(DrawLetters(5, true, random));
    depths.push_back(static_cast<double>(random.Below(1001)) / 1000);
  }
  std::ranges::sort(depths);
  std::vector<Haystack::Needle> needles;
  for (uint32_t i = 0; i <= settings.hops; ++i) {
    const std::string from = i == 0 ? value : absl::StrCat("VAR ", question.answers[i - 1]);
    needles.push_back({absl::StrCat("VAR ", question.answers[i], " = ", from, "\n"), depths[i]});
  }
  TextCase made;
  made.told = "Variables are set in this text. Keep in mind which of them have the same value.\n\n";
  made.told += hay.With(std::move(needles), size, random.Next() >> 16);
  made.asked.push_back(
      {absl::StrCat("\nThe variables whose value is ", value, " are: VAR"), question});
  return made;
}

TextCase WordCase(std::vector<std::string> words, std::vector<std::string> answers,
                  SeededRandom& random) {
  random.Shuffle(words);
  Question question;
  question.answers = std::move(answers);
  TextCase made;
  made.told = "Some words of this list come more often than others.\n\n";
  for (size_t i = 0; i < words.size(); ++i) {
    absl::StrAppend(&made.told, i + 1, ". ", words[i], " ");
  }
  made.told += "\n";
  made.asked.push_back({absl::StrCat("\nThe ", question.answers.size(),
                                     " words that come most often in the list are: 1."),
                        question});
  return made;
}

// Ten words come thirty times each, `size` others three times.
TextCase CommonCase(SeededRandom& random, uint32_t size) {
  const auto drawn = DrawKeys(std::min(kCommonWords + size, MostKeys()), "-", random);
  std::vector<std::string> words, answers(drawn.begin(), drawn.begin() + kCommonWords);
  for (size_t i = 0; i < drawn.size(); ++i) {
    words.insert(words.end(), i < kCommonWords ? kCommonTimes : kRareTimes, drawn[i]);
  }
  return WordCase(std::move(words), std::move(answers), random);
}

// `size` made-up words whose k-th comes as often as k^-2 says; the first is noise and not counted.
TextCase FrequentCase(SeededRandom& random, uint32_t size) {
  double sum = 0;
  for (uint32_t k = 1; k <= size; ++k) sum += std::pow(k, -kZetaExponent);
  std::vector<std::string> words, answers;
  for (uint32_t k = 1; k <= size && words.size() < size; ++k) {
    const std::string word = k == 1 ? "..." : DrawLetters(6, false, random);
    const double share = std::pow(k, -kZetaExponent) / sum;
    const auto times = std::max(1u, static_cast<uint32_t>(std::lround(share * size)));
    words.insert(words.end(), times, word);
    if (k > 1 && answers.size() < kFrequentWords) answers.push_back(word);
  }
  return WordCase(std::move(words), std::move(answers), random);
}

class Tracing : public Task {
 public:
  Tracing(const std::string& name, const TaskSettings& settings, Haystack hay)
      : name_(name), settings_(settings), hay_(std::move(hay)) {}

  uint32_t cases() const override { return settings_.cases; }

  absl::StatusOr<TaskCase> Make(uint32_t index) override {
    absl::Status failed = absl::OkStatus();
    auto made = FitToContext(settings_, name_ == "frequent-words" ? 24 : 1, [&](uint32_t size) {
      SeededRandom random(settings_.seed + index, kStream);
      TextCase text = name_ == "variable-tracking" ? VariableCase(settings_, hay_, random, size)
                      : name_ == "common-words"    ? CommonCase(random, size)
                                                   : FrequentCase(random, size);
      Question& question = text.asked[0].question;
      auto room = TokensFor(absl::StrJoin(question.answers, ", 10. "), settings_);
      if (!room.ok()) failed = room.status();
      question.max_new_tokens = room.value_or(1);
      return text;
    });
    if (!failed.ok()) return failed;
    return made;
  }

  std::string about() const override {
    if (name_ == "variable-tracking") {
      return absl::StrCat("a value handed on over ", settings_.hops,
                          " variables; share of the variables that the answer names");
    }
    return name_ == "common-words"
               ? "ten words thirty times, others three times; share of the ten in the answer"
               : "made-up words, the k-th as often as k^-2; share of the first three in the answer";
  }

 private:
  const std::string name_;
  const TaskSettings settings_;
  const Haystack hay_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Task>> MakeTracing(const std::string& name,
                                                  const TaskSettings& settings) {
  if (settings.cases == 0) {
    return absl::InvalidArgumentError(absl::StrCat("--cases: ", name, " needs a number"));
  }
  if (settings.phrasing == "lookup") {
    return absl::InvalidArgumentError(
        absl::StrCat("--phrasing lookup: ", name, " has no such phrasing"));
  }
  auto hay = Haystack::Make(settings);
  if (!hay.ok()) return hay.status();
  return std::make_unique<Tracing>(name, settings, *std::move(hay));
}

}  // namespace sparsekv
