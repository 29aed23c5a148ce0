#pragma once

#include "kernels/cuda/score_select_row.cuh"
#include "kernels/cuda/tape.h"

namespace sparsekv::cuda::fused {

// Notes the kernel of labels that are codes and returns the CTAs of a row; 0 where there is none
// for the job: pooled by sums, groups over 8, too many channels, rows too long.
uint32_t LaunchCoded(const Job& job, const Work& work, Tape& tape);

}  // namespace sparsekv::cuda::fused
