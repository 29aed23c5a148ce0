#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <memory>

#include "absl/status/statusor.h"

namespace grpc {
class Service;
}

namespace sparsekv {

// The public gRPC port: one service, health and reflection, on an inherited listening socket.
// Health is NOT_SERVING until SetServing(true).
class GrpcServer {
 public:
  virtual ~GrpcServer() = default;

  // Takes `listen_fd`; the service outlives the server. Connections are accepted on the strand,
  // from Start on.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Make(boost::asio::any_io_executor strand,
                                                          int listen_fd, grpc::Service* service);
  virtual void Start() = 0;              // strand
  virtual void SetServing(bool on) = 0;  // any thread
  virtual void StopAccepting() = 0;      // strand
  // Cancels what is left after `grace_ms`, and returns when every call is finished: never from the
  // strand, which goes on running meanwhile. After StopAccepting.
  virtual void Shutdown(int grace_ms) = 0;
};

}  // namespace sparsekv
