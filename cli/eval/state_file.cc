#include "cli/eval/state_file.h"

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"

namespace sparsekv {

namespace {

constexpr char kFormat[] = "sparsekv-eval-state";
constexpr int kVersion = 2;

// The first setting that is not the same, or "".
std::string Difference(const nlohmann::json& theirs, const nlohmann::json& ours) {
  for (const auto& [name, value] : ours.items()) {
    const auto found = theirs.find(name);
    if (found == theirs.end() || *found != value) return name;
  }
  for (const auto& [name, value] : theirs.items()) {
    if (!ours.contains(name)) return name;
  }
  return "";
}

}  // namespace

absl::StatusOr<std::unique_ptr<StateFile>> StateFile::Open(const std::string& path,
                                                           const nlohmann::ordered_json& settings) {
  std::unique_ptr<StateFile> state(new StateFile());
  if (path.empty()) return state;
  state->path_ = path;
  std::error_code error;
  if (std::filesystem::exists(path, error)) {
    auto text = ReadInput(path);
    if (!text.ok()) return text.status();
    const size_t end = text->rfind('\n');
    text->resize(end == std::string::npos ? 0 : end + 1);
    if (absl::Status s = state->ReadLines(*text, settings); !s.ok()) return s;
    std::filesystem::resize_file(path, text->size(), error);
    if (error) return absl::UnknownError(absl::StrCat(path, ": ", error.message()));
  }
  state->file_ = std::fopen(path.c_str(), "ab");
  if (!state->file_) return absl::UnknownError(absl::StrCat(path, ": cannot be written"));
  if (std::filesystem::file_size(path, error) > 0) return state;
  const nlohmann::ordered_json head = {
      {"format", kFormat}, {"version", kVersion}, {"settings", settings}};
  std::fprintf(state->file_, "%s\n", head.dump().c_str());
  std::fflush(state->file_);
  return state;
}

StateFile::~StateFile() {
  if (file_) std::fclose(file_);
}

absl::Status StateFile::ReadLines(const std::string& text, const nlohmann::ordered_json& settings) {
  size_t number = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = text.find('\n', at);
    const std::string line = text.substr(at, end - at);
    at = end + 1;
    if (number++ > 0) {
      if (absl::Status s = ReadCase(line, number); !s.ok()) return s;
      continue;
    }
    const auto head = nlohmann::json::parse(line, nullptr, false);
    if (!head.is_object() || head.value("format", "") != kFormat || !head.contains("settings") ||
        !head["settings"].is_object()) {
      return absl::InvalidArgumentError(absl::StrCat(path_, ": is no state of a sweep"));
    }
    if (head.value("version", 0) != kVersion) {
      return absl::InvalidArgumentError(
          absl::StrCat(path_, ": version ", head.value("version", 0), " is not ", kVersion));
    }
    const std::string different = Difference(head["settings"], nlohmann::json(settings));
    if (!different.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path_, ": is of another sweep, its ", different, " differs"));
    }
  }
  return absl::OkStatus();
}

absl::Status StateFile::ReadCase(const std::string& line, size_t number) {
  const auto bad = [&](const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat(path_, ":", number, ": ", what));
  };
  const auto json = nlohmann::json::parse(line, nullptr, false);
  if (!json.is_object() || !json.contains("task") || !json["task"].is_string() ||
      !json.contains("case") || !json["case"].is_number_unsigned() || !json.contains("candidate") ||
      !json["candidate"].is_string() || !json.contains("result")) {
    return bad("is no finished case");
  }
  auto result = CandidateResult::FromJson(json["result"]);
  if (!result.ok()) return bad("is no finished case");
  cases_[{json["task"], json["case"], json["candidate"]}] = *std::move(result);
  return absl::OkStatus();
}

const CandidateResult* StateFile::Find(const std::string& task, uint32_t index,
                                       const std::string& candidate) const {
  const auto found = cases_.find({task, index, candidate});
  return found == cases_.end() ? nullptr : &found->second;
}

absl::Status StateFile::Add(const std::string& task, uint32_t index, const std::string& candidate,
                            CandidateResult result) {
  if (file_) {
    const nlohmann::ordered_json line = {
        {"task", task}, {"case", index}, {"candidate", candidate}, {"result", result.ToJson()}};
    const bool written = std::fprintf(file_, "%s\n", line.dump().c_str()) > 0;
    if (!written || std::fflush(file_) != 0) {
      return absl::UnknownError(absl::StrCat(path_, ": cannot be written"));
    }
  }
  cases_[{task, index, candidate}] = std::move(result);
  return absl::OkStatus();
}

}  // namespace sparsekv
