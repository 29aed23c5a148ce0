#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <tuple>
#include <utility>

// A CUDA runtime for tests of the tape on machines without a device (fake_runtime.cc defines the
// functions of cuda_runtime_api.h that tape.cc calls). Kernels are host functions. Nothing runs
// before somebody waits, and then in a random order that keeps only what streams and events ask
// for: an edge that was forgotten shows.
namespace sparsekv::cuda::fake {

// Makes a host function a kernel: reads its arguments from where a launch has them, and keeps them.
using Binder = std::function<std::function<void()>(void** args)>;
void AddKernel(const void* function, Binder binder);

template <typename... P, size_t... I>
std::tuple<P...> Read([[maybe_unused]] void** args, std::index_sequence<I...>) {
  return {*static_cast<const P*>(args[I])...};
}

template <typename... P>
void Kernel(void (*kernel)(P...)) {
  AddKernel(reinterpret_cast<const void*>(kernel), [kernel](void** args) {
    const auto values = Read<P...>(args, std::index_sequence_for<P...>{});
    return std::function<void()>([kernel, values] { std::apply(kernel, values); });
  });
}

constexpr int kLeastPriority = 0, kGreatestPriority = -5;

struct Statistics {
  size_t allocations = 0;       // cudaMalloc and cudaMallocHost
  size_t live_allocations = 0;  // of those, not freed
  size_t captures = 0;
  size_t live_graphs = 0;  // executable ones
  size_t graph_launches = 0;
  size_t kernels_run = 0;
  size_t early_launches = 0;             // asked for, at capture or when they ran
  size_t cluster_launches = 0;           // likewise
  int last_priority = 0;                 // likewise, of the last launch's stream
  size_t most_dynamic_shared_bytes = 0;  // that a kernel was given with cudaFuncSetAttribute
};
const Statistics& statistics();

// The order of what follows.
void Seed(uint64_t seed);
// From now on the call of this name answers with an error; null: none does.
void Fail(const char* call);

}  // namespace sparsekv::cuda::fake
