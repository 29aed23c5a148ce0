#include "coordinator/store_link.h"

#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/ids.h"
#include "base/log.h"
#include "coordinator/backoff.h"
#include "coordinator/grpc_client.h"
#include "sparsekv/v1/kv_store.grpc.pb.h"

namespace sparsekv {

namespace {

constexpr std::chrono::seconds kCallLimit{5};
constexpr std::chrono::seconds kHeartbeat{1};  // a store that died is noticed within this

using Async = v1::KvStore::StubInterface::async_interface;
template <typename Request, typename Response>
using Method = void (Async::*)(grpc::ClientContext*, const Request*, Response*,
                               std::function<void(grpc::Status)>);

// What one call needs until it is answered.
template <typename Request, typename Response>
struct Call {
  grpc::ClientContext context;
  Request request;
  Response response;
  StoreLink::Callback<Response> done;
};

class GrpcStoreLink final : public StoreLink, public std::enable_shared_from_this<GrpcStoreLink> {
 public:
  GrpcStoreLink(boost::asio::any_io_executor strand, Gate* gate, std::string socket_path)
      : strand_(strand), gate_(gate), socket_path_(std::move(socket_path)), timer_(strand) {}

  void Start(Listener* listener) override {
    listener_ = listener;
    Describe();
  }
  void Allocate(const v1::AllocateRequest& request, Callback<v1::AllocateResponse> done) override {
    Invoke<v1::AllocateRequest, v1::AllocateResponse>(&Async::Allocate, request, std::move(done));
  }
  void Release(const v1::ReleaseRequest& request, Callback<v1::ReleaseResponse> done) override {
    Invoke<v1::ReleaseRequest, v1::ReleaseResponse>(&Async::Release, request, std::move(done));
  }
  void Reconcile(const v1::ReconcileRequest& request,
                 Callback<v1::ReconcileResponse> done) override {
    Invoke<v1::ReconcileRequest, v1::ReconcileResponse>(&Async::Reconcile, request,
                                                        std::move(done));
  }
  void Stop() override;

 private:
  template <typename Request, typename Response>
  void Invoke(Method<Request, Response> method, const Request& request, Callback<Response> done);
  template <typename Request, typename Response>
  void Begin(Method<Request, Response> method, const Request& request, Callback<Response> done);
  template <typename Request, typename Response>
  void Answered(const std::shared_ptr<Call<Request, Response>>& call, absl::Status status);

  void Describe();
  void OnDescribed(absl::StatusOr<v1::DescribeResponse> store);
  void DescribeAfter(std::chrono::milliseconds wait);
  void GoDown(const absl::Status& why);

  const boost::asio::any_io_executor strand_;
  Gate* const gate_;
  const std::string socket_path_;
  Listener* listener_ = nullptr;  // null after Stop
  std::unique_ptr<v1::KvStore::Stub> stub_;
  std::set<grpc::ClientContext*> under_way_;
  bool up_ = false;
  uint64_t boot_id_ = 0;
  Backoff backoff_;
  boost::asio::steady_timer timer_;
};

template <typename Request, typename Response>
void GrpcStoreLink::Invoke(Method<Request, Response> method, const Request& request,
                           Callback<Response> done) {
  if (up_) return Begin<Request, Response>(method, request, std::move(done));
  boost::asio::post(strand_, [done = std::move(done), weak = weak_from_this()] {
    auto self = weak.lock();
    if (self && self->listener_) done(absl::UnavailableError("the store is not there"));
  });
}

template <typename Request, typename Response>
void GrpcStoreLink::Begin(Method<Request, Response> method, const Request& request,
                          Callback<Response> done) {
  if (!gate_->Enter()) return;
  auto call = std::make_shared<Call<Request, Response>>();
  call->request = request;
  call->done = std::move(done);
  call->context.set_deadline(std::chrono::system_clock::now() + kCallLimit);
  under_way_.insert(&call->context);
  Async* async = stub_->async();
  (async->*method)(
      &call->context, &call->request, &call->response,
      [weak = weak_from_this(), strand = strand_, gate = gate_, call](const grpc::Status& status) {
        boost::asio::post(strand, [weak, call, status = FromGrpc(status)] {
          if (auto self = weak.lock()) self->Answered(call, status);
        });
        gate->Leave();
      });
}

template <typename Request, typename Response>
void GrpcStoreLink::Answered(const std::shared_ptr<Call<Request, Response>>& call,
                             absl::Status status) {
  under_way_.erase(&call->context);
  if (!listener_) return;
  if (absl::IsCancelled(status)) status = absl::UnavailableError("the store went away");
  if (status.ok() && up_ && call->response.boot_id() != boot_id_) {
    // Another process answered. It did what it was asked, but nothing is known of its table.
    status = absl::UnavailableError(
        absl::StrCat("the store is a new one, boot ", HexId(call->response.boot_id())));
  }
  if (up_ && (absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status))) GoDown(status);
  if (status.ok()) {
    call->done(std::move(call->response));
  } else {
    call->done(std::move(status));
  }
}

void GrpcStoreLink::Describe() {
  if (!up_) stub_ = v1::KvStore::NewStub(ConnectUnix(socket_path_));
  Begin<v1::DescribeRequest, v1::DescribeResponse>(
      &Async::Describe, v1::DescribeRequest(),
      [this](absl::StatusOr<v1::DescribeResponse> store) { OnDescribed(std::move(store)); });
}

void GrpcStoreLink::OnDescribed(absl::StatusOr<v1::DescribeResponse> store) {
  if (up_) return DescribeAfter(kHeartbeat);
  // A call of the time before may still change the table; its answer is awaited.
  if (!store.ok() || !under_way_.empty()) return DescribeAfter(backoff_.Next());
  up_ = true;
  boot_id_ = store->boot_id();
  backoff_.Reset();
  spdlog::info("store: boot {} is up, {} pools of {} blocks", HexId(boot_id_), store->pools(),
               store->blocks_per_pool());
  DescribeAfter(kHeartbeat);
  listener_->OnStoreUp(*store);
}

void GrpcStoreLink::DescribeAfter(std::chrono::milliseconds wait) {
  timer_.expires_after(wait);
  timer_.async_wait([weak = weak_from_this()](boost::system::error_code error) {
    if (error) return;
    if (auto link = weak.lock(); link && link->listener_) link->Describe();
  });
}

void GrpcStoreLink::GoDown(const absl::Status& why) {
  spdlog::warn("store: boot {} is gone: {}", HexId(boot_id_), why.ToString());
  up_ = false;
  for (grpc::ClientContext* context : under_way_) context->TryCancel();
  DescribeAfter(backoff_.Next());
  listener_->OnStoreDown(why);
}

void GrpcStoreLink::Stop() {
  listener_ = nullptr;
  up_ = false;
  timer_.cancel();
  for (grpc::ClientContext* context : under_way_) context->TryCancel();
}

}  // namespace

std::shared_ptr<StoreLink> MakeStoreLink(boost::asio::any_io_executor strand, Gate* gate,
                                         std::string socket_path) {
  return std::make_shared<GrpcStoreLink>(std::move(strand), gate, std::move(socket_path));
}

}  // namespace sparsekv
