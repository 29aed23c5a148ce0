#include "coordinator/grpc_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <chrono>
#include <utility>

#include "base/limits.h"
#include "coordinator/fd_acceptor.h"

namespace sparsekv {

namespace {

using Acceptor = grpc::experimental::ExternalConnectionAcceptor;

constexpr char kServiceName[] = "sparsekv.v1.Generation";

// A client whose machine vanished is noticed by pings, and what it held is freed.
constexpr int kKeepaliveMs = 30'000;
constexpr int kKeepaliveTimeoutMs = 10'000;
constexpr int kMinClientPingMs = 5'000;

class GrpcServerImpl final : public GrpcServer {
 public:
  GrpcServerImpl(boost::asio::any_io_executor strand, int listen_fd,
                 std::unique_ptr<Acceptor> acceptor, std::unique_ptr<grpc::Server> server)
      : acceptor_(std::move(acceptor)),
        server_(std::move(server)),
        listener_(std::move(strand), listen_fd, [this, listen_fd](int fd) {
          Acceptor::NewConnectionParameters connection;
          connection.listener_fd = listen_fd;
          connection.fd = fd;
          acceptor_->HandleNewConnection(&connection);
        }) {
    SetServing(false);
  }

  void Start() override { listener_.Start(); }
  void SetServing(bool on) override {
    server_->GetHealthCheckService()->SetServingStatus(on);  // the server as a whole
    server_->GetHealthCheckService()->SetServingStatus(kServiceName, on);
  }
  void StopAccepting() override { listener_.Stop(); }
  void Shutdown(int grace_ms) override {
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(grace_ms));
  }

 private:
  const std::unique_ptr<Acceptor> acceptor_;
  const std::unique_ptr<grpc::Server> server_;
  FdAcceptor listener_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Make(boost::asio::any_io_executor strand,
                                                             int listen_fd,
                                                             grpc::Service* service) {
  if (absl::Status status = CheckListening(listen_fd); !status.ok()) return status;
  static const bool plugins = [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    return true;
  }();
  (void)plugins;
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.SetMaxSendMessageSize(kMaxMessageBytes);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinClientPingMs);
  auto acceptor = builder.experimental().AddExternalConnectionAcceptor(
      grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD,
      grpc::InsecureServerCredentials());
  builder.RegisterService(service);
  auto server = builder.BuildAndStart();
  if (!server) return absl::InternalError("gRPC would not start a server");
  return std::make_unique<GrpcServerImpl>(std::move(strand), listen_fd, std::move(acceptor),
                                          std::move(server));
}

}  // namespace sparsekv
