#include "kv_store/service.h"

#include <grpcpp/grpcpp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/post.hpp>
#include <cerrno>
#include <chrono>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "sparsekv/v1/kv_store.grpc.pb.h"

namespace sparsekv::kv_store {
namespace {

constexpr auto kShutdownGrace = std::chrono::milliseconds(500);

grpc::Status ToGrpc(const absl::Status& status) {
  return {static_cast<grpc::StatusCode>(status.code()), std::string(status.message())};
}

class Service final : public v1::KvStore::CallbackService {
 public:
  Service(boost::asio::io_context& io, BlockTable& table, const KvStoreServer::Facts& facts)
      : io_(io), table_(table), facts_(facts) {}

  grpc::ServerUnaryReactor* Describe(grpc::CallbackServerContext* context,
                                     const v1::DescribeRequest*,
                                     v1::DescribeResponse* response) override {
    return Answer(context, [this, response] {
      response->set_boot_id(facts_.boot_id);
      response->set_pools(table_.pools());
      response->set_blocks_per_pool(table_.blocks());
      for (uint32_t pool = 0; pool < table_.pools(); ++pool) {
        response->add_free_blocks(table_.free_blocks(pool));
      }
      response->set_bytes_per_block(facts_.bytes_per_block);
      return absl::OkStatus();
    });
  }

  grpc::ServerUnaryReactor* Allocate(grpc::CallbackServerContext* context,
                                     const v1::AllocateRequest* request,
                                     v1::AllocateResponse* response) override {
    return Answer(context, [this, request, response] {
      absl::StatusOr<BlockGrant> grant =
          table_.Allocate(request->pool(), request->owner(), request->tokens());
      if (!grant.ok()) return grant.status();
      response->set_boot_id(facts_.boot_id);
      response->mutable_blocks()->Assign(grant->blocks.begin(), grant->blocks.end());
      response->mutable_generations()->Assign(grant->generations.begin(), grant->generations.end());
      response->set_free_blocks(table_.free_blocks(request->pool()));
      return absl::OkStatus();
    });
  }

  grpc::ServerUnaryReactor* Release(grpc::CallbackServerContext* context,
                                    const v1::ReleaseRequest* request,
                                    v1::ReleaseResponse* response) override {
    return Answer(context, [this, request, response] {
      return Released(table_.Release(request->pool(), request->owner()), request->pool(), response);
    });
  }

  grpc::ServerUnaryReactor* Reconcile(grpc::CallbackServerContext* context,
                                      const v1::ReconcileRequest* request,
                                      v1::ReconcileResponse* response) override {
    return Answer(context, [this, request, response] {
      const std::vector<uint64_t> live(request->live_owners().begin(),
                                       request->live_owners().end());
      return Released(table_.Reconcile(request->pool(), live), request->pool(), response);
    });
  }

 private:
  // Runs `handle` on io's thread and finishes the call with its status. Request and response live
  // until then, also when the client has gone.
  template <typename Handle>
  grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, Handle handle) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    boost::asio::post(io_,
                      [reactor, handle = std::move(handle)] { reactor->Finish(ToGrpc(handle())); });
    return reactor;
  }

  template <typename Response>
  absl::Status Released(const absl::StatusOr<uint32_t>& released, uint32_t pool,
                        Response* response) const {
    if (!released.ok()) return released.status();
    response->set_boot_id(facts_.boot_id);
    response->set_released_blocks(*released);
    response->set_free_blocks(table_.free_blocks(pool));
    return absl::OkStatus();
  }

  boost::asio::io_context& io_;
  BlockTable& table_;
  const KvStoreServer::Facts facts_;
};

class GrpcServer final : public KvStoreServer {
 public:
  GrpcServer(boost::asio::io_context& io, BlockTable& table, const Facts& facts)
      : service_(io, table, facts) {}

  absl::Status Listen(const std::string& socket_path) {
    struct stat info = {};
    const bool there = lstat(socket_path.c_str(), &info) == 0;
    if (there && !S_ISSOCK(info.st_mode)) {
      return absl::AlreadyExistsError(absl::StrCat(socket_path, " is there and is not a socket"));
    }
    if (there && unlink(socket_path.c_str()) != 0) {
      return absl::ErrnoToStatus(errno, absl::StrCat("removing ", socket_path));
    }
    grpc::ServerBuilder builder;
    builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
    builder.SetMaxSendMessageSize(kMaxMessageBytes);
    builder.AddListeningPort(absl::StrCat("unix:", socket_path), grpc::InsecureServerCredentials());
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    if (!server_) return absl::UnavailableError(absl::StrCat("cannot serve on ", socket_path));
    return absl::OkStatus();
  }

  void Shutdown() override { server_->Shutdown(std::chrono::system_clock::now() + kShutdownGrace); }

 private:
  Service service_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<KvStoreServer>> KvStoreServer::Start(
    boost::asio::io_context& io, BlockTable& table, const Facts& facts,
    const std::string& socket_path) {
  auto server = std::make_unique<GrpcServer>(io, table, facts);
  if (absl::Status status = server->Listen(socket_path); !status.ok()) return status;
  return server;
}

}  // namespace sparsekv::kv_store
