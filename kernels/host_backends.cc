#include <hwy/highway.h>

#include "kernels/test_cases.h"

// What kernels_test runs on: the reference, and the cpu on one thread and on several.
namespace sparsekv::testing {

std::vector<BackendCase> BackendCases(bool every_instruction_set) {
  std::vector<BackendCase> cases = {{}};
  // The best instruction set has the lowest bit.
  for (int64_t left = hwy::SupportedTargets() & HWY_TARGETS; left != 0; left &= left - 1) {
    for (unsigned threads : {1u, 3u}) {
      cases.push_back({BackendCase::Kind::kCpu, left & -left, threads});
    }
    if (!every_instruction_set) break;
  }
  return cases;
}

}  // namespace sparsekv::testing
