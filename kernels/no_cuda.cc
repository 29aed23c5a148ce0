#include "base/check.h"
#include "kernels/backend.h"
#include "kernels/host_memory.h"

// In the place of cuda/cuda_backend.cc where there is no CUDA toolkit.
namespace sparsekv {

std::string WhyNoCuda() { return "this build has no CUDA backend"; }
std::vector<CudaDevice> CudaDevices() { return {}; }

std::unique_ptr<Backend> MakeCudaBackend(const CudaOptions&, std::string* why) {
  *why = WhyNoCuda();
  return nullptr;
}

std::byte* AllocateForAll(size_t bytes) {
  std::byte* memory = AllocateOnHost(bytes);
  CHECK(memory != nullptr);
  return memory;
}

void FreeForAll(std::byte* memory) { FreeOnHost(memory); }

}  // namespace sparsekv
