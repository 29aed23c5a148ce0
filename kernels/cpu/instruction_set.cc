#include <hwy/highway.h>

#include "base/check.h"
#include "kernels/cpu/operations.h"

namespace sparsekv::cpu {

std::string InstructionSet() {
  // Lower bits are better sets; the dispatch takes the best that was compiled and is supported.
  const int64_t usable = hwy::SupportedTargets() & HWY_TARGETS;
  CHECK(usable != 0);  // a processor without SSE4
  return hwy::TargetName(usable & -usable);
}

}  // namespace sparsekv::cpu
