#include "kernels/test_cases.h"

#include <hwy/highway.h>

namespace sparsekv::testing {
namespace {

// One of each for the whole process, so that a test meets what others left in it (graphs, scratch).
// Never destroyed: the CUDA runtime may end before the statics of this file do.
std::shared_ptr<Backend> Cuda(bool fast) {
  static auto* const backends = new std::shared_ptr<Backend>[2];
  std::string why;
  if (!backends[fast]) {
    backends[fast] = MakeCudaBackend({.graphs = fast,
                                      .early_launch = fast,
                                      .most_shared_bytes = fast ? SIZE_MAX : size_t{99} << 10},
                                     &why);
  }
  return backends[fast];
}

std::shared_ptr<Backend> Make(const BackendCase& wanted, bool other) {
  switch (wanted.kind) {
    case BackendCase::Kind::kReference:
      return MakeReferenceBackend();
    case BackendCase::Kind::kCpu:
      return MakeCpuBackend(!other ? wanted.threads : wanted.threads == 1 ? 2 : 1);
    case BackendCase::Kind::kCuda:
      return Cuda(/*fast=*/!other);
  }
  return nullptr;
}

}  // namespace

std::string BackendCaseName(const ::testing::TestParamInfo<BackendCase>& info) {
  const BackendCase& param = info.param;
  if (param.kind == BackendCase::Kind::kReference) return "reference";
  if (param.kind == BackendCase::Kind::kCuda) return "cuda";
  return std::string(hwy::TargetName(param.target)) + "_" + std::to_string(param.threads);
}

void BackendTest::SetUp() {
  if (GetParam().kind == BackendCase::Kind::kCpu) {
    hwy::SetSupportedTargetsForTest(GetParam().target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
  backend_ = Make(GetParam(), /*other=*/false);
  ASSERT_NE(backend_, nullptr);
  if (GetParam().kind == BackendCase::Kind::kCpu) {
    ASSERT_NE(backend_->name().find(hwy::TargetName(GetParam().target)), std::string::npos);
  }
}

void BackendTest::TearDown() {
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

Backend& BackendTest::other() {
  if (!other_) other_ = Make(GetParam(), /*other=*/true);
  return *other_;
}

std::vector<StepKind> BackendTest::Kinds() const {
  if (backend_->host_memory()) return {StepKind::kPrompt};
  return {StepKind::kPrompt, StepKind::kDecode};
}

}  // namespace sparsekv::testing
