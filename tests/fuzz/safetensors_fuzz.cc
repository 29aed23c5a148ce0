// A safetensors file: its header alone, and as a file that is mapped.
#include "gpu_worker/checkpoint/safetensors.h"
#include "gpu_worker/checkpoint/safetensors_header.h"
#include "tests/fuzz/fuzz_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sparsekv;
  const std::string_view bytes = fuzz::AsText(data, size);
  if (size >= 8) {
    // What would be the header's length says here how long the data are.
    uint64_t data_bytes = 0;
    for (int i = 0; i < 8; ++i) data_bytes |= uint64_t{data[i]} << (8 * i);
    const auto records = ParseSafetensorsHeader(bytes.substr(8), data_bytes);
    if (!records.ok()) fuzz::CheckOneLine(std::string(records.status().message()));
  }
  fuzz::WriteFile("model.safetensors", bytes);
  const auto file = SafetensorsFile::Open(fuzz::Directory() + "/model.safetensors");
  if (!file.ok()) fuzz::CheckOneLine(std::string(file.status().message()));
  return 0;
}
