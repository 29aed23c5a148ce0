#include <algorithm>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/eval/tasks/tasks.h"

namespace sparsekv {

namespace {

// Windows of a text's ids. Each gives its last tokens' targets; what is before is the prefix.
class Windows : public Task {
 public:
  Windows(const TaskSettings& settings, Question::Kind kind, std::vector<uint32_t> ids,
          std::vector<size_t> starts)
      : settings_(settings), kind_(kind), ids_(std::move(ids)), starts_(std::move(starts)) {}

  uint32_t cases() const override { return static_cast<uint32_t>(starts_.size()); }

  absl::StatusOr<TaskCase> Make(uint32_t index) override {
    const bool bos = settings_.bos_each_window && starts_[index] > 0;
    const size_t room = settings_.context - bos;
    const size_t size = std::min(room, ids_.size() - starts_[index]);
    std::vector<uint32_t> window;
    if (bos) window.push_back(*settings_.tokenizer->bos_id());
    const auto from = ids_.begin() + static_cast<ptrdiff_t>(starts_[index]);
    window.insert(window.end(), from, from + static_cast<ptrdiff_t>(size));
    const size_t scored = window.size() - 1;
    const size_t last = settings_.last ? std::min<size_t>(settings_.last, scored) : scored;
    const auto cut = window.begin() + static_cast<ptrdiff_t>(scored - last);
    TaskCase made;
    made.prefix.assign(window.begin(), cut);
    Question question;
    question.kind = kind_;
    question.ids.assign(cut, window.end() - 1);
    question.targets.assign(cut + 1, window.end());
    made.questions.push_back(std::move(question));
    return made;
  }

  Metric metric() const override {
    return kind_ == Question::Kind::kLikelihood ? Metric::kPerplexity : Metric::kAccuracy;
  }

  std::string about() const override {
    const std::string last = settings_.last ? absl::StrCat("the last ", settings_.last) : "all";
    const std::string windows =
        absl::StrCat("windows of ", settings_.context, " tokens of ", settings_.text_file,
                     ", one every ", settings_.stride ? settings_.stride : settings_.context);
    if (kind_ == Question::Kind::kRecall) {
      return absl::StrCat(windows, "; ", last,
                          " decoded densely: dense attention that the selected rows hold");
    }
    return absl::StrCat(windows, "; ", last,
                        " decoded under the policy, each predicted from those before");
  }

 private:
  const TaskSettings settings_;
  const Question::Kind kind_;
  const std::vector<uint32_t> ids_;
  const std::vector<size_t> starts_;
};

absl::Status BadOption(const std::string& what) { return absl::InvalidArgumentError(what); }

}  // namespace

absl::StatusOr<std::unique_ptr<Task>> MakeWindows(const std::string& name,
                                                  const TaskSettings& settings) {
  if (settings.text_file.empty()) return BadOption(absl::StrCat("--text: ", name, " needs one"));
  if (settings.bos_each_window && !settings.tokenizer->bos_id()) {
    return BadOption("--bos-each-window: the tokenizer has no token that begins a text");
  }
  auto text = ReadInput(settings.text_file);
  if (!text.ok()) return text.status();
  auto ids = settings.tokenizer->Encode(*text);
  if (!ids.ok()) return ids.status();
  for (uint32_t id : *ids) {
    if (id < settings.files->config.vocab_size) continue;
    return BadOption(absl::StrCat("tokenizer.json: id ", id, " is not below the vocabulary size ",
                                  settings.files->config.vocab_size));
  }
  // All of a text: its rest is a shorter window. Only last tokens: every window is full, so that
  // each is decoded at the same distance from its beginning.
  const size_t stride = settings.stride ? settings.stride : settings.context;
  const size_t least = settings.last ? settings.context : 2;
  std::vector<size_t> starts;
  for (size_t at = 0; at + least <= ids->size(); at += stride) {
    if (settings.cases && starts.size() == settings.cases) break;
    starts.push_back(at);
  }
  if (starts.empty()) {
    return BadOption(absl::StrCat("--text: ", settings.text_file, " has ", ids->size(),
                                  " tokens, and a window ", settings.context));
  }
  const auto kind = name == "recall" ? Question::Kind::kRecall : Question::Kind::kLikelihood;
  return std::make_unique<Windows>(settings, kind, *std::move(ids), std::move(starts));
}

}  // namespace sparsekv
