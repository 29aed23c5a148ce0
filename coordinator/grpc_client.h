#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "absl/status/status.h"

namespace sparsekv {

// A channel to a Unix socket that shares no connection with any other: each attempt to reach a peer
// makes its own, so that the pause between attempts is ours and not gRPC's.
std::shared_ptr<grpc::Channel> ConnectUnix(const std::string& socket_path);

absl::Status FromGrpc(const grpc::Status& status);
grpc::Status ToGrpc(const absl::Status& status);

}  // namespace sparsekv
