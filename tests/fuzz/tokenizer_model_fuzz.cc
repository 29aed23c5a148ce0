// tokenizer.model (sentencepiece). The first byte chooses between two configurations.
#include "tests/fuzz/tokenizer_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sparsekv;
  if (size == 0) return 0;
  fuzz::WriteFile("tokenizer_config.json", data[0] % 2 == 0
                                               ? R"({"legacy": false, "add_eos_token": true})"
                                               : R"({"pad_token": "a", "unk_token": "<unk>"})");
  fuzz::WriteFile("tokenizer.model", fuzz::AsText(data + 1, size - 1));
  fuzz::UseTokenizer();
  return 0;
}
