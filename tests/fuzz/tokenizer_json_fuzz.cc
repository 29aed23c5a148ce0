// tokenizer.json, and tokenizer_config.json after the first zero byte.
#include "tests/fuzz/tokenizer_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sparsekv;
  const std::string_view bytes = fuzz::AsText(data, size);
  const size_t cut = std::min(bytes.find('\0'), bytes.size());
  fuzz::WriteFile("tokenizer.json", bytes.substr(0, cut));
  fuzz::WriteFile("tokenizer_config.json",
                  cut < bytes.size() ? bytes.substr(cut + 1) : std::string_view("{}"));
  fuzz::UseTokenizer();
  return 0;
}
