// A channel config, ours or of the published form, for a model of 2 layers, 2 KV heads of 8.
#include "gpu_worker/channel_config.h"
#include "tests/fuzz/fuzz_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sparsekv;
  ModelConfig model;
  model.layers = 2;
  model.heads = 4;
  model.kv_heads = 2;
  model.head_dim = 8;
  fuzz::WriteFile("channels.json", fuzz::AsText(data, size));
  for (const uint32_t channels : {0u, 3u}) {
    const auto config = ChannelConfig::Load(fuzz::Directory() + "/channels.json", model,
                                            /*fingerprint=*/0x0123456789abcdef, channels);
    if (!config.ok()) fuzz::CheckOneLine(std::string(config.status().message()));
  }
  return 0;
}
