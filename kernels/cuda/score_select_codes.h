#pragma once

#include "kernels/cuda/score_select_row.cuh"
#include "kernels/cuda/tape.h"

namespace sparsekv::cuda::fused {

// Notes the kernel of labels that are codes; false where the device has none for the job.
bool LaunchCoded(const Job& job, const Work& work, Tape& tape);

}  // namespace sparsekv::cuda::fused
