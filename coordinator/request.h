#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "coordinator/completion.h"
#include "coordinator/response_stream.h"
#include "coordinator/scheduler.h"
#include "coordinator/validate.h"
#include "sparsekv/v1/generation.pb.h"

namespace sparsekv {

// The life of a request. The client's side (`stream`) and what the request holds end independently:
// a client that left has no stream any more, but its blocks stay until the worker has reported the
// end.
//
//   kPreparing --valid--> kQueued --room--> kAllocating --blocks--> kRunning --+--> gone
//                            ^                  |                      |       |
//                            +--not now---------+          drop, stop string   | SequenceEnd
//                                                                      v       |
//                                                                   kEnding ---+
enum class Phase {
  kPreparing,   // waits for the model to be known, or is being checked and tokenised by the pool
  kQueued,      // in the queue
  kAllocating,  // room is taken on a worker, the store is asked for blocks
  kRunning,     // a member of its worker's plans
  kEnding,      // not in the plan any more; the worker has still to report the end
};

// Owned by the engine; strand only.
struct Request {
  using Clock = std::chrono::steady_clock;

  uint64_t key = 0;  // rises with arrival; the sequence_id at the worker
  std::string id;    // the client's name for it
  Phase phase = Phase::kPreparing;
  std::shared_ptr<const v1::GenerateRequest> wire;  // while kPreparing
  std::shared_ptr<ResponseStream> stream;           // null once finished

  GenerateParams params;  // from kQueued on
  Need need;
  std::optional<Completion> completion;

  uint32_t worker = 0;                                  // from kAllocating on
  v1::Placement placement = v1::PLACEMENT_UNSPECIFIED;  // the same
  uint64_t owner = 0;                                   // at the store; a new one for each attempt

  Clock::time_point arrived;
  Clock::time_point started;      // the plan that starts it was sent
  Clock::time_point first_token;  // after the first
  Clock::time_point last_token;
};

}  // namespace sparsekv
