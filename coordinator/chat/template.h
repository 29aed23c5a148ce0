#pragma once

#include <ctime>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "coordinator/chat/error.h"
#include "coordinator/chat/limits.h"

namespace sparsekv::chat {

struct Tree;

// What a template is rendered with: what transformers' apply_chat_template passes it.
struct RenderInput {
  std::string_view messages = "[]";  // JSON text
  std::string_view tools = {};       // JSON text; empty: none
  std::string_view variables = {};   // JSON object whose members become names; they win
  bool add_generation_prompt = false;
  std::map<std::string, std::string> special_tokens = {};  // bos_token, eos_token, ...
  std::tm now = {};                                        // what strftime_now shows
};

// A chat template in our subset of Jinja. Immutable: any number of threads may render it at once.
class Template {
 public:
  // InvalidArgument, in one line with the template's line, for what is no Jinja, is not in the
  // subset or is over a limit.
  static absl::StatusOr<std::unique_ptr<const Template>> Parse(std::string_view source,
                                                               const TemplateLimits& limits = {});
  ~Template();

  // The text. InvalidArgument when the template refuses the conversation (with its own words),
  // fails on it or goes over a limit. `kind` gets what kind of error it is.
  absl::StatusOr<std::string> Render(const RenderInput& input, ErrorKind* kind = nullptr) const;

 private:
  Template(std::unique_ptr<const Tree> tree, const TemplateLimits& limits);

  const std::unique_ptr<const Tree> tree_;
  const TemplateLimits limits_;
};

std::tm LocalTime();  // now

}  // namespace sparsekv::chat
