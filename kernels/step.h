#pragma once

#include <cstdint>

namespace sparsekv {

// What the operations between BeginStep and EndStep are: a decode step has one token of every
// sequence and comes again in the same shape, so that a device may keep it as a graph; a prompt's
// chunk does not. A device may compute the two kinds in different ways: what is the same to the bit
// whatever the batch or the chunk is so within a kind.
enum class StepKind : uint8_t { kPrompt, kDecode };

// Where a device runs what it is given: the step itself, what guesses the next layer's rows beside
// it, what fetches them, and what keeps rows that the step has read. Each lane runs its operations
// in order; between lanes order is only what marks make. Backends that finish every operation
// before they return have one lane.
enum class Lane : uint8_t { kCompute = 0, kPredict = 1, kPrefetch = 2, kKeep = 3 };
inline constexpr int kLanes = 4;

// What decode steps were made of so far, where they are noted and run as a whole.
struct StepWork {
  uint64_t steps = 0;
  uint64_t operations = 0;  // kernels and copies
  double wait_s = 0;        // the host did nothing but wait for the device
};

}  // namespace sparsekv
