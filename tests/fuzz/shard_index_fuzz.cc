// model.safetensors.index.json beside two good shards.
#include "gpu_worker/checkpoint/checkpoint_testing.h"
#include "gpu_worker/checkpoint/weights.h"
#include "tests/fuzz/fuzz_target.h"

namespace {

sparsekv::ModelConfig WriteShards() {
  using sparsekv::testing::SafetensorsBytes;
  const auto tensors = sparsekv::testing::TinyTensors("BF16");
  const auto middle = tensors.begin() + static_cast<std::ptrdiff_t>(tensors.size() / 2);
  sparsekv::fuzz::WriteFile("a.safetensors", SafetensorsBytes({tensors.begin(), middle}));
  sparsekv::fuzz::WriteFile("b.safetensors", SafetensorsBytes({middle, tensors.end()}));
  sparsekv::fuzz::WriteFile("config.json", sparsekv::testing::TinyConfig().dump());
  return *sparsekv::ModelConfig::Load(sparsekv::fuzz::Directory());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sparsekv;
  static const ModelConfig config = WriteShards();
  fuzz::WriteFile("model.safetensors.index.json", fuzz::AsText(data, size));
  const auto weights = Weights::Load(fuzz::Directory(), config);
  if (!weights.ok()) fuzz::CheckOneLine(std::string(weights.status().message()));
  return 0;
}
