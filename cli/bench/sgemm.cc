#include "cli/bench/sgemm.h"

#include <dlfcn.h>

#include <cstdlib>

#include "absl/strings/str_cat.h"

namespace sparsekv {

absl::StatusOr<Sgemm> Sgemm::Open(unsigned threads) {
  // Its threads would spin for some 100 ms after each product, on cores that the next case needs.
  setenv("OPENBLAS_THREAD_TIMEOUT", "18", 1);                         // 2^18 cycles
  void* library = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);  // until the process ends
  if (library == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("OpenBLAS (libopenblas0) is what prefill is compared with: ", dlerror()));
  }
  const auto set_threads =
      reinterpret_cast<void (*)(int)>(dlsym(library, "openblas_set_num_threads"));
  const auto sgemm = reinterpret_cast<Function>(dlsym(library, "cblas_sgemm"));
  if (set_threads == nullptr || sgemm == nullptr) {
    return absl::FailedPreconditionError("libopenblas.so.0 lacks cblas_sgemm");
  }
  set_threads(static_cast<int>(threads));
  return Sgemm(sgemm);
}

void Sgemm::Multiply(const float* x, uint32_t tokens, const float* w, uint32_t outputs,
                     uint32_t inputs, float* y) const {
  constexpr int kRowMajor = 101, kNoTranspose = 111, kTranspose = 112;
  const auto m = static_cast<int>(tokens);
  const auto n = static_cast<int>(outputs);
  const auto k = static_cast<int>(inputs);
  sgemm_(kRowMajor, kNoTranspose, kTranspose, m, n, k, 1.0f, x, k, w, k, 0.0f, y, n);
}

}  // namespace sparsekv
