#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "gpu_worker/step_loop.h"

namespace sparsekv {

// Serves Worker.Run on a Unix socket: plans go into the inbox, reports come from the device thread
// through Send. One stream is current; a new one supersedes it. gRPC's threads call in; nothing
// here waits for the device thread.
class WorkerService : public ReportSink {
 public:
  // Listens on `socket_path` (mode 0600; a socket left by a dead worker is replaced). `inbox`
  // outlives the service.
  static absl::StatusOr<std::unique_ptr<WorkerService>> Serve(const std::string& socket_path,
                                                              WorkerInbox* inbox);

  // Ends the stream and the server; the device thread must not call Send afterwards.
  virtual void Shutdown() = 0;
};

}  // namespace sparsekv
