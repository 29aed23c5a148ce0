#pragma once

#include <cstdint>

#include "absl/status/statusor.h"

namespace sparsekv {

// OpenBLAS's matrix product, as the measure of ours. The library is opened when it is asked for:
// merely loading it starts threads, which nothing but this comparison should pay for.
class Sgemm {
 public:
  // `threads` threads for the whole process. FAILED_PRECONDITION: the library is not installed.
  static absl::StatusOr<Sgemm> Open(unsigned threads);

  // y[t, o] = sum over i of x[t, i] * w[o, i].
  void Multiply(const float* x, uint32_t tokens, const float* w, uint32_t outputs, uint32_t inputs,
                float* y) const;

 private:
  using Function = void (*)(int order, int transpose_a, int transpose_b, int m, int n, int k,
                            float alpha, const float* a, int lda, const float* b, int ldb,
                            float beta, float* c, int ldc);  // cblas_sgemm

  explicit Sgemm(Function sgemm) : sgemm_(sgemm) {}

  Function sgemm_;
};

}  // namespace sparsekv
