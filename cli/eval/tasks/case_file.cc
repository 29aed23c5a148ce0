#include "cli/eval/tasks/case_file.h"

#include <zlib.h>

#include <filesystem>
#include <memory>

#include "absl/strings/str_cat.h"

namespace sparsekv {

namespace {

constexpr size_t kMaxDepth = 32;

absl::Status Bad(const std::string& path, size_t line, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ":", line, ": ", what));
}

// zlib reads plain files as they are.
absl::StatusOr<std::string> ReadPlainOrGzip(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  }
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  std::string text(size_t{1} << 20, '\0'), all;
  int got = 0;
  while ((got = gzread(file.get(), text.data(), static_cast<unsigned>(text.size()))) > 0) {
    all.append(text, 0, static_cast<size_t>(got));
    if (all.size() > kMaxCaseFileBytes) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": has more than 1 GiB"));
    }
  }
  int code = Z_OK;
  const char* what = gzerror(file.get(), &code);
  if (got < 0 || (code != Z_OK && code != Z_STREAM_END)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": is no whole gzip file: ", what ? what : "?"));
  }
  return all;
}

// Whether brackets nest no deeper than a parser may follow.
bool Shallow(const std::string& text) {
  size_t depth = 0;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted) {
      if (c == '\\') ++i;
      if (c == '"') quoted = false;
    } else if (c == '"') {
      quoted = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxDepth) return false;
    } else if ((c == '}' || c == ']') && depth > 0) {
      --depth;
    }
  }
  return true;
}

absl::StatusOr<TextCase> KeyValueCase(const nlohmann::json& object, const std::string& path,
                                      size_t line) {
  auto key = StringField(object, "key", path, line);
  if (!key.ok()) return key.status();
  auto value = StringField(object, "value", path, line);
  if (!value.ok()) return value.status();
  const auto records = object.find("ordered_kv_records");
  if (records == object.end() || !records->is_array() || records->empty()) {
    return Bad(path, line, "ordered_kv_records is no list of pairs");
  }
  TextCase made;
  made.told = "One value of this JSON object will be asked for.\n\n{";
  const char* before = "";
  for (const auto& pair : *records) {
    if (!pair.is_array() || pair.size() != 2 || !pair[0].is_string() || !pair[1].is_string()) {
      return Bad(path, line, "ordered_kv_records is no list of pairs");
    }
    absl::StrAppend(&made.told, before, "\"", pair[0].get_ref<const std::string&>(), "\": \"",
                    pair[1].get_ref<const std::string&>(), "\"");
    before = ",\n ";
  }
  made.told += "}\n\n";
  Question question;
  question.answers = {*value};
  made.asked.push_back({absl::StrCat("The value of \"", *key, "\" is \""), question});
  return made;
}

// The record is told; its last paragraph asks.
absl::StatusOr<TextCase> LinesCase(const nlohmann::json& object, const std::string& path,
                                   size_t line) {
  auto prompt = StringField(object, "prompt", path, line);
  if (!prompt.ok()) return prompt.status();
  const auto number = object.find("expected_number");
  if (number == object.end() || !number->is_number_integer()) {
    return Bad(path, line, "expected_number is no whole number");
  }
  const auto index = object.find("random_idx");
  if (index == object.end() || !index->is_array() || index->empty() || !(*index)[0].is_string()) {
    return Bad(path, line, "random_idx does not begin with a line's name");
  }
  const size_t cut = prompt->rfind("\n\n");
  TextCase made;
  made.told = cut == std::string::npos ? *prompt : prompt->substr(0, cut + 1);
  const std::string ask = cut == std::string::npos ? "" : prompt->substr(cut + 1);
  Question question;
  question.answers = {absl::StrCat(number->get<int64_t>())};
  made.asked.push_back({absl::StrCat(ask, "\nThe <REGISTER_CONTENT> in line ",
                                     (*index)[0].get_ref<const std::string&>(), " is"),
                        question});
  return made;
}

absl::StatusOr<TextCase> PasskeyCase(const nlohmann::json& object, const std::string& path,
                                     size_t line) {
  auto input = StringField(object, "input", path, line);
  if (!input.ok()) return input.status();
  auto target = StringField(object, "target", path, line);
  if (!target.ok()) return target.status();
  Question question;
  question.answers = {*target};
  TextCase made;
  made.told = *input + "\n";
  made.asked.push_back({"What is the pass key? The pass key is", question});
  return made;
}

class CaseFile : public Task {
 public:
  CaseFile(const std::string& name, const TaskSettings& settings, std::vector<TextCase> cases)
      : name_(name), settings_(settings), made_(std::move(cases)) {}

  uint32_t cases() const override { return static_cast<uint32_t>(made_.size()); }

  absl::StatusOr<TaskCase> Make(uint32_t index) override {
    TextCase text = made_[index];
    Question& question = text.asked[0].question;
    auto room = TokensFor(question.answers[0], settings_);
    if (!room.ok()) return room.status();
    question.max_new_tokens = *room;
    auto made = Tokenise(text, settings_);
    if (!made.ok()) return made.status();
    const size_t tokens = made->prefix.size() + made->questions[0].ids.size() + *room;
    if (tokens <= settings_.context) return made;
    return Bad(settings_.file, index + 1,
               absl::StrCat("has ", tokens, " tokens, and the context ", settings_.context));
  }

  std::string about() const override {
    return absl::StrCat("cases of ", settings_.file, "; right when the value is in the answer");
  }

 private:
  const std::string name_;
  const TaskSettings settings_;
  const std::vector<TextCase> made_;
};

}  // namespace

absl::StatusOr<std::vector<nlohmann::json>> ReadJsonLines(const std::string& path) {
  auto text = ReadPlainOrGzip(path);
  if (!text.ok()) return text.status();
  std::vector<nlohmann::json> objects;
  size_t number = 0;
  for (size_t at = 0; at < text->size();) {
    const size_t end = std::min(text->find('\n', at), text->size());
    const std::string line = text->substr(at, end - at);
    at = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    if (line.size() > kMaxLineBytes) return Bad(path, number, "has more than 16 MiB");
    if (!Shallow(line)) return Bad(path, number, "is nested too deep");
    auto object = nlohmann::json::parse(line, nullptr, false);
    if (!object.is_object()) return Bad(path, number, "is no JSON object");
    objects.push_back(std::move(object));
  }
  if (objects.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": has no cases"));
  return objects;
}

absl::StatusOr<std::string> StringField(const nlohmann::json& object, const char* field,
                                        const std::string& path, size_t line) {
  const auto found = object.find(field);
  if (found == object.end()) return Bad(path, line, absl::StrCat(field, " is missing"));
  if (!found->is_string()) return Bad(path, line, absl::StrCat(field, " is no string"));
  return found->get<std::string>();
}

absl::StatusOr<std::unique_ptr<Task>> MakeCaseFile(const std::string& name,
                                                   const TaskSettings& settings) {
  auto objects = ReadJsonLines(settings.file);
  if (!objects.ok()) return objects.status();
  std::vector<TextCase> cases;
  for (size_t i = 0; i < objects->size(); ++i) {
    if (settings.cases && cases.size() == settings.cases) break;
    const auto& object = (*objects)[i];
    auto made = name == "kv-retrieval" ? KeyValueCase(object, settings.file, i + 1)
                : name == "lines"      ? LinesCase(object, settings.file, i + 1)
                                       : PasskeyCase(object, settings.file, i + 1);
    if (!made.ok()) return made.status();
    cases.push_back(*std::move(made));
  }
  return std::make_unique<CaseFile>(name, settings, std::move(cases));
}

}  // namespace sparsekv
