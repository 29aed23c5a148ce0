#pragma once

#include <cuda_runtime_api.h>

namespace sparsekv::cuda {

// A device that failed once is in no known state: the process ends, with one line on stderr and
// this exit code, and its parent starts another.
inline constexpr int kDeviceErrorExit = 75;

[[noreturn]] void DeviceFailed(const char* file, int line, const char* what, const char* why);

inline void CheckCall(cudaError_t error, const char* file, int line, const char* what) {
  if (error != cudaSuccess) [[unlikely]] {
    DeviceFailed(file, line, what, cudaGetErrorString(error));
  }
}

}  // namespace sparsekv::cuda

#define CUDA_CHECK(call) ::sparsekv::cuda::CheckCall((call), __FILE__, __LINE__, #call)
