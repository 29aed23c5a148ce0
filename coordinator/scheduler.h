#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <vector>

#include "sparsekv/v1/worker.pb.h"

namespace sparsekv {

// The policy of admission: pure functions of a state, no I/O, no clock.

// What a sequence takes of its worker, for its prompt and all its new tokens, from start to end.
// What it takes of the device's row blocks depends on the worker too: DeviceBlocks.
struct Need {
  uint32_t host_blocks = 0;
  uint32_t label_pages = 0;        // on the device; 0 for dense attention
  uint32_t largest_selection = 0;  // rows of its last step's selection; 0 for dense attention
};
Need NeedOf(uint32_t tokens, bool double_sparsity, const v1::Budget& budget);

// Where sequences' rows are to be read from, --placement.
enum class PlacementPolicy {
  kAuto,      // resident while there is room for that now, else offload
  kResident,  // waits until every row fits on the device
  kOffload,
};

// What one worker has, and what of it nobody has taken.
struct WorkerCapacity {
  bool ready = false;  // takes sequences now
  uint32_t blocks_total = 0;
  uint32_t blocks_free = 0;
  uint32_t label_pages_total = 0;
  uint32_t label_pages_free = 0;
  uint32_t slots_free = 0;        // of its batch
  uint64_t row_blocks_total = 0;  // on the device, each of one layer; 0 = they are not counted
  uint64_t row_blocks_free = 0;
  uint32_t layers = 0;
  uint32_t hot_rows =
      0;  // of a row set; 0 = two sets for all layers, which hold one selection each
};

// Row blocks of the device that the sequence takes there; 0 where they are not counted.
uint64_t DeviceBlocks(const Need& need, const WorkerCapacity& worker, v1::Placement placement);

struct Waiting {
  uint64_t key = 0;
  Need need;
};

struct Admission {
  uint64_t key = 0;
  uint32_t worker = 0;
  v1::Placement placement = v1::PLACEMENT_UNSPECIFIED;  // of a worker that counts row blocks
  uint64_t row_blocks = 0;
};

// Empty when the sequence fits an empty worker, else one line with both numbers.
std::string WhyNever(const Need& need, const WorkerCapacity& worker, PlacementPolicy policy);

// Which of the waiting start now, and where. Strictly first come, first served: nobody passes one
// that waits for room, so nobody waits for ever. With kAuto a worker that can keep every row on its
// device comes before one that cannot. Among equals a sequence goes to the worker with most free
// slots, then most free blocks, then the lowest number.
std::vector<Admission> Schedule(const std::deque<Waiting>& queue,
                                std::vector<WorkerCapacity> workers, PlacementPolicy policy);

// Tokens of a prefill unit: short while others decode, so that they see no long pause.
uint32_t PrefillUnitTokens(bool others_decode);

}  // namespace sparsekv
