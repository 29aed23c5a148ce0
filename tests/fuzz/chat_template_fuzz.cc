// A chat template, and the messages' JSON after the first zero byte.
#include "base/check.h"
#include "coordinator/chat/template.h"
#include "tests/fuzz/fuzz_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sparsekv;
  const std::string_view bytes = fuzz::AsText(data, size);
  const size_t cut = std::min(bytes.find('\0'), bytes.size());
  const chat::TemplateLimits limits{
      .output_bytes = 1 << 16, .memory_bytes = 8 << 20, .items = 1 << 12, .steps = 100'000};
  const auto parsed = chat::Template::Parse(bytes.substr(0, cut), limits);
  if (!parsed.ok()) {
    fuzz::CheckOneLine(std::string(parsed.status().message()));
    return 0;
  }
  chat::RenderInput input;
  input.messages =
      R"([{"role": "system", "content": "s"}, {"role": "user", "content": "\u00e9 u"}])";
  if (cut < bytes.size()) input.messages = bytes.substr(cut + 1);
  input.tools = R"([{"type": "function", "function": {"name": "f", "parameters": {}}}])";
  input.special_tokens = {{"bos_token", "<s>"}, {"eos_token", "</s>"}};
  input.add_generation_prompt = true;
  const auto text = (*parsed)->Render(input);
  CHECK(!text.ok() || text->size() <= limits.output_bytes);
  return 0;
}
