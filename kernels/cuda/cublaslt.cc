#include "kernels/cuda/cublaslt.h"

#include <cublasLt.h>
#include <dlfcn.h>
#include <unistd.h>

#include <climits>
#include <vector>

#include "kernels/cuda/check.h"

namespace sparsekv::cuda {
namespace {

constexpr char kName[] = "libcublasLt.so.13";

// As the loader would find it, beside the program as a bundle has it, where toolkits put it.
std::vector<std::string> Places() {
  std::vector<std::string> places = {kName};
  char path[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof(path));
  if (length > 0) {
    const std::string program(path, static_cast<size_t>(length));
    places.push_back(program.substr(0, program.rfind('/')) + "/../lib/" + kName);
  }
  places.push_back(std::string("/usr/local/cuda/lib64/") + kName);
  return places;
}

void* Library() {
  static void* const library = [] {
    void* found = nullptr;
    for (const std::string& place : Places()) {
      if (found == nullptr) found = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    }
    return found;
  }();
  return library;
}

template <typename Function>
Function* Find(const char* name) {
  void* found = Library() ? dlsym(Library(), name) : nullptr;
  if (found == nullptr) DeviceFailed(__FILE__, __LINE__, name, WhyNoCublasLt().c_str());
  return reinterpret_cast<Function*>(found);
}

}  // namespace

std::string WhyNoCublasLt() {
  if (Library() != nullptr) return "";
  std::string why = "no CUDA 13 libraries: looked for";
  for (const std::string& place : Places()) why += " " + place;
  return why;
}

}  // namespace sparsekv::cuda

// The library's functions that we call, by their own names.
#define SPARSEKV_FORWARD(name, parameters, arguments)                          \
  cublasStatus_t CUBLASWINAPI name parameters {                                \
    static auto* const function = sparsekv::cuda::Find<decltype(name)>(#name); \
    return function arguments;                                                 \
  }

extern "C" {
SPARSEKV_FORWARD(cublasLtCreate, (cublasLtHandle_t * handle), (handle))
SPARSEKV_FORWARD(cublasLtDestroy, (cublasLtHandle_t handle), (handle))
SPARSEKV_FORWARD(cublasLtMatmulDescCreate,
                 (cublasLtMatmulDesc_t * description, cublasComputeType_t compute,
                  cudaDataType_t scale),
                 (description, compute, scale))
SPARSEKV_FORWARD(cublasLtMatmulDescDestroy, (cublasLtMatmulDesc_t description), (description))
SPARSEKV_FORWARD(cublasLtMatmulDescSetAttribute,
                 (cublasLtMatmulDesc_t description, cublasLtMatmulDescAttributes_t attribute,
                  const void* value, size_t bytes),
                 (description, attribute, value, bytes))
SPARSEKV_FORWARD(cublasLtMatrixLayoutCreate,
                 (cublasLtMatrixLayout_t * layout, cudaDataType type, uint64_t rows, uint64_t cols,
                  int64_t stride),
                 (layout, type, rows, cols, stride))
SPARSEKV_FORWARD(cublasLtMatrixLayoutDestroy, (cublasLtMatrixLayout_t layout), (layout))
SPARSEKV_FORWARD(cublasLtMatmulPreferenceCreate, (cublasLtMatmulPreference_t * preference),
                 (preference))
SPARSEKV_FORWARD(cublasLtMatmulPreferenceDestroy, (cublasLtMatmulPreference_t preference),
                 (preference))
SPARSEKV_FORWARD(cublasLtMatmulPreferenceSetAttribute,
                 (cublasLtMatmulPreference_t preference,
                  cublasLtMatmulPreferenceAttributes_t attribute, const void* value, size_t bytes),
                 (preference, attribute, value, bytes))
SPARSEKV_FORWARD(cublasLtMatmulAlgoGetHeuristic,
                 (cublasLtHandle_t handle, cublasLtMatmulDesc_t description,
                  cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                  cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference, int wanted,
                  cublasLtMatmulHeuristicResult_t results[], int* found),
                 (handle, description, a, b, c, d, preference, wanted, results, found))
SPARSEKV_FORWARD(cublasLtMatmul,
                 (cublasLtHandle_t handle, cublasLtMatmulDesc_t description, const void* alpha,
                  const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                  cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                  cublasLtMatrixLayout_t c_layout, void* d, cublasLtMatrixLayout_t d_layout,
                  const cublasLtMatmulAlgo_t* algorithm, void* workspace, size_t workspace_bytes,
                  cudaStream_t stream),
                 (handle, description, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d,
                  d_layout, algorithm, workspace, workspace_bytes, stream))

const char* CUBLASWINAPI cublasLtGetStatusString(cublasStatus_t status) {
  static auto* const function =
      sparsekv::cuda::Find<decltype(cublasLtGetStatusString)>("cublasLtGetStatusString");
  return function(status);
}
}
