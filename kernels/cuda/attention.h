#pragma once

#include <span>

#include "kernels/attention.h"
#include "kernels/cuda/rows_done.h"
#include "kernels/cuda/tape.h"

// The two ways to attend. Both note kernels on the tape and keep the contract of
// kernels/attention.h, each with its own bits.
namespace sparsekv::cuda {

// Items of one token each, over a selection or over all rows up to the position: the rows are
// streamed once, a list is cut into splits that run beside each other.
void AttendFew(const AttendArgs& args, std::span<const AttendArgs::Item> items,
               const SelectedRows& selected, Tape& tape);

// Dense items of any number of tokens: tiles of query tokens share the rows.
void AttendPrompt(const AttendArgs& args, std::span<const AttendArgs::Item> items, Tape& tape);

}  // namespace sparsekv::cuda
