#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "base/gate.h"
#include "sparsekv/v1/worker.pb.h"

namespace sparsekv {

// The coordinator's end of one worker: a Run stream that is opened again whenever it breaks. All
// methods and all calls of the listener run on the strand; no method calls the listener before it
// returns.
class WorkerLink {
 public:
  // Up, then reports, then Down; and again. `worker` is the index that the link was made with.
  class Listener {
   public:
    virtual ~Listener() = default;
    // A new stream: the worker has none of the sequences of the one before. `boot_id` tells whether
    // it is the same process.
    virtual void OnWorkerUp(uint32_t worker, uint64_t boot_id, const v1::WorkerHello& hello) = 0;
    virtual void OnWorkerReport(uint32_t worker, const v1::Report& report) = 0;
    virtual void OnWorkerDown(uint32_t worker, const absl::Status& why) = 0;
  };

  virtual ~WorkerLink() = default;
  // Begins to connect. The listener outlives Stop.
  virtual void Start(Listener* listener) = 0;
  // Plans reach the worker in this order, every one. Dropped while the link is down.
  virtual void Send(v1::Plan plan) = 0;
  virtual size_t unsent() const = 0;
  // Breaks the stream: the peer does not keep the contract. OnWorkerDown follows, then a new
  // attempt.
  virtual void Break(const std::string& why) = 0;
  // No calls of the listener after this. What gRPC still has under way leaves the gate.
  virtual void Stop() = 0;
};

// `gate` is entered for every stream and left when gRPC has let go of it; the executor's context
// runs until then.
std::shared_ptr<WorkerLink> MakeWorkerLink(boost::asio::any_io_executor strand, Gate* gate,
                                           uint32_t worker, std::string socket_path);

}  // namespace sparsekv
