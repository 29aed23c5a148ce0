#pragma once

#include <string>

namespace sparsekv::cuda {

// cuBLASLt is looked for when a device is first used, not when a program starts: the same binaries
// run where there is no CUDA. "" = it is there; else one line that says where it was looked for.
std::string WhyNoCublasLt();

}  // namespace sparsekv::cuda
