#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

namespace sparsekv {

// The policy of admission: pure functions of a state, no I/O, no clock.

// What a sequence takes of its worker, for its prompt and all its new tokens, from start to end.
struct Need {
  uint32_t host_blocks = 0;
  uint32_t label_pages = 0;  // on the device; 0 for dense attention
};
Need NeedOf(uint32_t tokens, bool double_sparsity);

// What one worker has, and what of it nobody has taken.
struct WorkerCapacity {
  bool ready = false;  // takes sequences now
  uint32_t blocks_total = 0;
  uint32_t blocks_free = 0;
  uint32_t label_pages_total = 0;
  uint32_t label_pages_free = 0;
  uint32_t slots_free = 0;  // of its batch
};

struct Waiting {
  uint64_t key = 0;
  Need need;
};

struct Placement {
  uint64_t key = 0;
  uint32_t worker = 0;
};

// Whether the sequence fits an empty worker.
bool CanEverFit(const Need& need, const WorkerCapacity& worker);

// Which of the waiting start now, and where. Strictly first come, first served: nobody passes one
// that waits for room, so nobody waits for ever. A sequence goes to the worker with most free
// slots, then most free blocks, then the lowest number.
std::vector<Placement> Schedule(const std::deque<Waiting>& queue,
                                std::vector<WorkerCapacity> workers);

// Tokens of a prefill unit: short while others decode, so that they see no long pause.
uint32_t PrefillUnitTokens(bool others_decode);

}  // namespace sparsekv
