// config.json, and generation_config.json after the first zero byte.
#include "gpu_worker/checkpoint/model_config.h"
#include "tests/fuzz/fuzz_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sparsekv;
  const std::string_view bytes = fuzz::AsText(data, size);
  const size_t cut = std::min(bytes.find('\0'), bytes.size());
  fuzz::WriteFile("config.json", bytes.substr(0, cut));
  fuzz::WriteFile("generation_config.json",
                  cut < bytes.size() ? bytes.substr(cut + 1) : std::string_view("{}"));
  const auto config = ModelConfig::Load(fuzz::Directory());
  if (config.ok()) {
    (void)config->InverseFrequency();
  } else {
    fuzz::CheckOneLine(std::string(config.status().message()));
  }
  return 0;
}
