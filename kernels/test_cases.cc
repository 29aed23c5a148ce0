#include "kernels/test_cases.h"

#include <hwy/highway.h>

namespace sparsekv::testing {

std::vector<CpuCase> CpuCases() {
  std::vector<CpuCase> cases;
  for (int64_t left = hwy::SupportedTargets() & HWY_TARGETS; left != 0; left &= left - 1) {
    for (unsigned threads : {1u, 3u}) cases.push_back({left & -left, threads});
  }
  return cases;
}

std::string CpuCaseName(const ::testing::TestParamInfo<CpuCase>& info) {
  return std::string(hwy::TargetName(info.param.target)) + "_" + std::to_string(info.param.threads);
}

void CpuTest::SetUp() {
  hwy::SetSupportedTargetsForTest(GetParam().target);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  cpu_ = MakeCpuBackend(GetParam().threads);
  ASSERT_NE(cpu_->name().find(hwy::TargetName(GetParam().target)), std::string::npos);
}

void CpuTest::TearDown() {
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace sparsekv::testing
