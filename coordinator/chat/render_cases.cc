// For tests/golden/compare_chat_templates.py: one JSON object a line on stdin, one on stdout. In:
// template, messages, tools, variables, add_generation_prompt. Out: text, or error and kind.
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "coordinator/chat/template.h"

namespace sparsekv::chat {
namespace {

constexpr const char* kKinds[] = {"syntax",    "unsupported", "raised",
                                  "undefined", "runtime",     "limit"};

nlohmann::json RenderCase(const nlohmann::json& input) {
  const auto parsed = Template::Parse(input.at("template").get<std::string>());
  if (!parsed.ok()) return {{"error", parsed.status().message()}, {"kind", "syntax"}};
  const std::string messages = input.at("messages").get<std::string>();
  const std::string tools = input.at("tools").get<std::string>();
  const std::string variables = input.at("variables").get<std::string>();
  ErrorKind kind = ErrorKind::kRuntime;
  const auto text = (*parsed)->Render({.messages = messages,
                                       .tools = tools,
                                       .variables = variables,
                                       .add_generation_prompt = input.at("add_generation_prompt"),
                                       .now = LocalTime()},
                                      &kind);
  if (text.ok()) return {{"text", *text}};
  return {{"error", text.status().message()}, {"kind", kKinds[static_cast<int>(kind)]}};
}

}  // namespace
}  // namespace sparsekv::chat

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << sparsekv::chat::RenderCase(nlohmann::json::parse(line)).dump() << std::endl;
  }
}
