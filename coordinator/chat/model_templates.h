#pragma once

#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/chat/template.h"

namespace sparsekv::chat {

// The chat templates of a checkpoint, found as transformers finds them: chat_template.jinja is the
// default and chat_templates/NAME.jinja the others; without such files `chat_template` of
// tokenizer_config.json, a text or a list of {name, template}. Special tokens come from there too,
// or from special_tokens_map.json. Immutable, thread-safe.
class ModelTemplates {
 public:
  // Never fails: what is wrong is said by whoever asks for a template.
  static ModelTemplates Load(const std::string& model_dir, const TemplateLimits& limits = {});

  // Whether a conversation without tools can be rendered; FailedPrecondition says why not, in one
  // line that names the file.
  absl::Status status() const;

  // Renders with the template `tool_use` where there is one and tools are given, else with the
  // default. Sets the special tokens. FailedPrecondition without a template, else as
  // Template::Render; a conversation without messages is InvalidArgument.
  absl::StatusOr<std::string> Render(RenderInput input) const;

 private:
  absl::StatusOr<const Template*> Choose(bool tools) const;
  void Add(const std::string& name, const absl::StatusOr<std::string>& source,
           const std::string& place, const TemplateLimits& limits);
  void AddFiles(const std::string& model_dir, const TemplateLimits& limits);
  void AddConfig(const std::string& model_dir, const TemplateLimits& limits);

  absl::Status problem_;  // with a file that every template needs
  std::map<std::string, absl::StatusOr<std::shared_ptr<const Template>>> templates_;
  std::map<std::string, std::string> special_tokens_;
};

}  // namespace sparsekv::chat
