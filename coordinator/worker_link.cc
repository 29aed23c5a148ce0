#include "coordinator/worker_link.h"

#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <deque>
#include <utility>

#include "base/ids.h"
#include "base/log.h"
#include "coordinator/backoff.h"
#include "coordinator/grpc_client.h"
#include "sparsekv/v1/worker.grpc.pb.h"

namespace sparsekv {

namespace {

class GrpcWorkerLink;

// One Run call. Reactions only post to the strand, where everything else happens. A hold keeps the
// call open for the strand's reads and writes until it has seen a read fail.
class RunStream final : public grpc::ClientBidiReactor<v1::Plan, v1::Report>,
                        public std::enable_shared_from_this<RunStream> {
 public:
  RunStream(boost::asio::any_io_executor strand, Gate* gate, std::weak_ptr<GrpcWorkerLink> link)
      : strand_(std::move(strand)), gate_(gate), link_(std::move(link)) {}

  bool Begin(const std::string& socket_path);
  void Send(v1::Plan plan);
  size_t unsent() const { return plans_.size(); }
  void Cancel() { context_.TryCancel(); }

  void OnReadDone(bool ok) override { Post(&RunStream::HandleRead, ok); }
  void OnWriteDone(bool ok) override { Post(&RunStream::HandleWrite, ok); }
  void OnDone(const grpc::Status& status) override;

 private:
  void Post(void (RunStream::*handle)(bool), bool ok) {
    boost::asio::post(strand_, [self = shared_from_this(), handle, ok] { (*self.*handle)(ok); });
  }
  void HandleRead(bool ok);
  void HandleWrite(bool ok);

  const boost::asio::any_io_executor strand_;
  Gate* const gate_;
  const std::weak_ptr<GrpcWorkerLink> link_;
  std::shared_ptr<RunStream> self_;  // while gRPC may call
  std::unique_ptr<v1::Worker::Stub> stub_;
  grpc::ClientContext context_;
  v1::Report report_;  // the read in flight, or the report being handled
  // On the strand.
  std::deque<v1::Plan> plans_;  // the front is being written
  bool broken_ = false;         // the hold is gone
};

class GrpcWorkerLink final : public WorkerLink,
                             public std::enable_shared_from_this<GrpcWorkerLink> {
 public:
  GrpcWorkerLink(boost::asio::any_io_executor strand, Gate* gate, uint32_t worker,
                 std::string socket_path)
      : strand_(strand),
        gate_(gate),
        worker_(worker),
        socket_path_(std::move(socket_path)),
        retry_(strand) {}

  void Start(Listener* listener) override {
    listener_ = listener;
    Connect();
  }
  void Send(v1::Plan plan) override {
    if (up_) stream_->Send(std::move(plan));
  }
  size_t unsent() const override { return stream_ ? stream_->unsent() : 0; }
  void Break(const std::string& why) override;
  void Stop() override;

  void OnReport(const std::shared_ptr<RunStream>& stream, const v1::Report& report);
  void OnClosed(const std::shared_ptr<RunStream>& stream, const grpc::Status& status);

 private:
  void Connect();

  const boost::asio::any_io_executor strand_;
  Gate* const gate_;
  const uint32_t worker_;
  const std::string socket_path_;
  Listener* listener_ = nullptr;  // null after Stop
  std::shared_ptr<RunStream> stream_;
  bool up_ = false;
  uint64_t boot_id_ = 0;
  Backoff backoff_;
  boost::asio::steady_timer retry_;
};

bool RunStream::Begin(const std::string& socket_path) {
  if (!gate_->Enter()) return false;
  self_ = shared_from_this();
  stub_ = v1::Worker::NewStub(ConnectUnix(socket_path));
  stub_->async()->Run(&context_, this);
  AddHold();
  StartRead(&report_);
  StartCall();
  return true;
}

void RunStream::Send(v1::Plan plan) {
  if (broken_) return;
  plans_.push_back(std::move(plan));
  if (plans_.size() == 1) StartWrite(&plans_.front());
}

void RunStream::HandleWrite(bool ok) {
  if (!ok) return;  // the read fails too
  plans_.pop_front();
  if (!broken_ && !plans_.empty()) StartWrite(&plans_.front());
}

void RunStream::HandleRead(bool ok) {
  if (!ok) {
    broken_ = true;
    RemoveHold();
    return;
  }
  if (auto link = link_.lock()) link->OnReport(shared_from_this(), report_);
  StartRead(&report_);
}

void RunStream::OnDone(const grpc::Status& status) {
  Gate* const gate = gate_;  // the strand may delete this stream before the next line
  boost::asio::post(strand_, [self = std::move(self_), status] {
    if (auto link = self->link_.lock()) link->OnClosed(self, status);
  });
  gate->Leave();
}

void GrpcWorkerLink::Connect() {
  stream_ = std::make_shared<RunStream>(strand_, gate_, weak_from_this());
  if (!stream_->Begin(socket_path_)) stream_.reset();
}

void GrpcWorkerLink::OnReport(const std::shared_ptr<RunStream>& stream, const v1::Report& report) {
  if (stream != stream_ || !listener_) return;
  if (!up_) {
    if (!report.has_hello() || report.worker_boot_id() == 0) {
      return Break("its first report has no hello or no boot id");
    }
    up_ = true;
    boot_id_ = report.worker_boot_id();
    backoff_.Reset();
    spdlog::info("worker {}: boot {} pid {} is up", worker_, HexId(boot_id_), report.hello().pid());
    listener_->OnWorkerUp(worker_, boot_id_, report.hello());
  } else if (report.worker_boot_id() != boot_id_) {
    return Break("its boot id changed within a stream");
  }
  listener_->OnWorkerReport(worker_, report);
}

void GrpcWorkerLink::Break(const std::string& why) {
  spdlog::error("worker {}: {}", worker_, why);
  backoff_.Slow();
  if (stream_) stream_->Cancel();
}

void GrpcWorkerLink::OnClosed(const std::shared_ptr<RunStream>& stream,
                              const grpc::Status& status) {
  if (stream != stream_ || !listener_) return;
  stream_.reset();
  if (std::exchange(up_, false)) {
    spdlog::warn("worker {}: boot {} is gone: {}", worker_, HexId(boot_id_),
                 status.error_message());
    listener_->OnWorkerDown(worker_, FromGrpc(status));
  }
  retry_.expires_after(backoff_.Next());
  retry_.async_wait([weak = weak_from_this()](boost::system::error_code error) {
    if (error) return;
    if (auto link = weak.lock(); link && link->listener_) link->Connect();
  });
}

void GrpcWorkerLink::Stop() {
  listener_ = nullptr;
  up_ = false;
  retry_.cancel();
  if (stream_) stream_->Cancel();
}

}  // namespace

std::shared_ptr<WorkerLink> MakeWorkerLink(boost::asio::any_io_executor strand, Gate* gate,
                                           uint32_t worker, std::string socket_path) {
  return std::make_shared<GrpcWorkerLink>(std::move(strand), gate, worker, std::move(socket_path));
}

}  // namespace sparsekv
