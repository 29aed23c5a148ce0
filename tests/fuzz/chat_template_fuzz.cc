// A template of any bytes, rendered with a conversation: it may fail, not crash or stay.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "coordinator/chat/template.h"

namespace {

constexpr std::string_view kMessages =
    R"([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "ü <b>\n"},)"
    R"( {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f",)"
    R"( "arguments": {"a": [1, 2.5, null, true]}}}]}, {"role": "tool", "content": "3"}])";
constexpr std::string_view kTools =
    R"([{"type": "function", "function": {"name": "f", "parameters": {"properties": {}}}}])";

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const sparsekv::chat::TemplateLimits limits{.source_bytes = 4096,
                                              .output_bytes = 1 << 16,
                                              .memory_bytes = 8 << 20,
                                              .items = 1 << 12,
                                              .steps = 100'000};
  const auto parsed =
      sparsekv::chat::Template::Parse({reinterpret_cast<const char*>(data), size}, limits);
  if (!parsed.ok()) return 0;
  const auto text = (*parsed)->Render({.messages = kMessages,
                                       .tools = kTools,
                                       .add_generation_prompt = true,
                                       .special_tokens = {{"bos_token", "<s>"}}});
  return text.ok() && text->size() > limits.output_bytes ? __builtin_trap(), 0 : 0;
}
