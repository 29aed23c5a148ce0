#include "coordinator/chat/model_templates.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/concat.h"
#include "base/json_file.h"

namespace sparsekv::chat {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kTokens[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                   "pad_token", "cls_token", "mask_token"};
constexpr size_t kMaxFiles = 64;  // in chat_templates/

absl::Status Unusable(const std::string& place, std::string_view what) {
  return absl::FailedPreconditionError(Concat(place, ": ", what));
}

absl::StatusOr<std::string> ReadTemplate(const std::string& path, size_t most) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return Unusable(path, "is not a regular file");
  const uintmax_t size = fs::file_size(path, error);
  if (error || size > most) {
    return Unusable(path, Concat("is larger than ", most, " bytes"));
  }
  std::ifstream file(path, std::ios::binary);
  std::string text(static_cast<size_t>(size), '\0');
  if (!file.read(text.data(), static_cast<std::streamsize>(size))) {
    return Unusable(path, "cannot be read");
  }
  return text;
}

// A token written as a text or as an object with its text.
void ReadTokens(const json& config, std::map<std::string, std::string>* tokens) {
  for (const char* name : kTokens) {
    const auto found = config.find(name);
    if (found == config.end()) continue;
    const json& token =
        found->is_object() && found->contains("content") ? (*found)["content"] : *found;
    if (token.is_string()) (*tokens)[name] = token.get<std::string>();
  }
}

}  // namespace

ModelTemplates ModelTemplates::Load(const std::string& model_dir, const TemplateLimits& limits) {
  ModelTemplates loaded;
  loaded.AddFiles(model_dir, limits);
  loaded.AddConfig(model_dir, limits);
  return loaded;
}

void ModelTemplates::Add(const std::string& name, const absl::StatusOr<std::string>& source,
                         const std::string& place, const TemplateLimits& limits) {
  if (!source.ok()) {
    templates_.insert_or_assign(name, source.status());
    return;
  }
  auto parsed = Template::Parse(*source, limits);
  if (parsed.ok()) {
    templates_.insert_or_assign(name, std::shared_ptr<const Template>(*std::move(parsed)));
  } else {
    templates_.insert_or_assign(name, Unusable(place, std::string(parsed.status().message())));
  }
}

void ModelTemplates::AddFiles(const std::string& model_dir, const TemplateLimits& limits) {
  std::error_code error;
  const std::string single = Concat(model_dir, "/chat_template.jinja");
  if (fs::exists(single, error)) {
    Add("default", ReadTemplate(single, limits.source_bytes), single, limits);
  }
  std::vector<std::string> names;
  for (fs::directory_iterator entry(Concat(model_dir, "/chat_templates"), error), end;
       !error && entry != end && names.size() < kMaxFiles; entry.increment(error)) {
    if (entry->path().extension() == ".jinja") names.push_back(entry->path().stem());
  }
  std::sort(names.begin(), names.end());
  for (const std::string& name : names) {
    const std::string path = Concat(model_dir, "/chat_templates/", name, ".jinja");
    Add(name, ReadTemplate(path, limits.source_bytes), path, limits);
  }
}

void ModelTemplates::AddConfig(const std::string& model_dir, const TemplateLimits& limits) {
  const std::string path = Concat(model_dir, "/tokenizer_config.json");
  const absl::StatusOr<json> config = ReadJsonFile(path);
  if (absl::IsNotFound(config.status())) {
    const auto map = ReadJsonFile(Concat(model_dir, "/special_tokens_map.json"));
    if (map.ok() && map->is_object()) ReadTokens(*map, &special_tokens_);
    return;
  }
  if (!config.ok() || !config->is_object()) {
    problem_ = config.ok() ? Unusable(path, "is not an object")
                           : absl::FailedPreconditionError(config.status().message());
    return;
  }
  ReadTokens(*config, &special_tokens_);
  if (!config->contains("added_tokens_decoder")) {  // the older layout
    const auto map = ReadJsonFile(Concat(model_dir, "/special_tokens_map.json"));
    if (map.ok() && map->is_object()) ReadTokens(*map, &special_tokens_);
  }
  const auto found = config->find("chat_template");
  if (!templates_.empty() || found == config->end() || found->is_null()) return;
  const auto add = [&](const std::string& name, const json& text) {
    const std::string place = Concat(path, ": chat_template");
    const absl::StatusOr<std::string> source =
        text.is_string() ? absl::StatusOr<std::string>(text.get<std::string>())
                         : Unusable(place, "is not a text");
    Add(name, source, place, limits);
  };
  if (!found->is_array()) return add("default", *found);
  for (const json& entry : *found) {
    const bool named = entry.is_object() && entry.contains("name") && entry["name"].is_string() &&
                       entry.contains("template");
    add(named ? entry["name"].get<std::string>() : "default", named ? entry["template"] : json());
  }
}

absl::StatusOr<const Template*> ModelTemplates::Choose(bool tools) const {
  if (!problem_.ok()) return problem_;
  auto found = tools ? templates_.find("tool_use") : templates_.end();
  if (found == templates_.end()) found = templates_.find("default");
  if (found == templates_.end()) {
    return absl::FailedPreconditionError(
        templates_.empty() ? "the checkpoint has no chat template (chat_template.jinja, or "
                             "chat_template in tokenizer_config.json)"
                           : "the checkpoint has chat templates, but none is named default");
  }
  if (!found->second.ok()) return found->second.status();
  return found->second->get();
}

absl::Status ModelTemplates::status() const { return Choose(false).status(); }

absl::StatusOr<std::string> ModelTemplates::Render(RenderInput input) const {
  const auto chosen = Choose(!input.tools.empty());
  if (!chosen.ok()) return chosen.status();
  const size_t begin = std::min(input.messages.find_first_not_of(" \t\r\n"), input.messages.size());
  const size_t inside = input.messages.find_first_not_of(" \t\r\n[", begin);
  if (inside == std::string_view::npos || input.messages[inside] == ']') {
    return absl::InvalidArgumentError("messages: there are none");
  }
  input.special_tokens = special_tokens_;
  return (*chosen)->Render(input);
}

}  // namespace sparsekv::chat
