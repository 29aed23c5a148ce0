#include "kernels/test_cases.h"

// What kernels_cuda_test runs on: the CUDA device, where there is one.
namespace sparsekv::testing {
namespace {

TEST(CudaDevice, IsThere) {
  const std::string why = WhyNoCuda();
  if (!why.empty()) GTEST_SKIP() << "nothing is tested on CUDA: " << why;
  EXPECT_FALSE(CudaDevices().empty());
}

}  // namespace

std::vector<BackendCase> BackendCases(bool) {
  if (!WhyNoCuda().empty()) return {};
  return {{.kind = BackendCase::Kind::kCuda}};
}

}  // namespace sparsekv::testing
