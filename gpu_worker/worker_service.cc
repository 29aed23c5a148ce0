#include "gpu_worker/worker_service.h"

#include <grpcpp/grpcpp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <deque>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"
#include "sparsekv/v1/worker.grpc.pb.h"

namespace sparsekv {

namespace {

class WorkerServiceImpl;

// One Worker.Run call. Plans are read one after the other; reports are written one at a time from a
// queue. gRPC deletes nothing: OnDone does.
class RunStream : public grpc::ServerBidiReactor<v1::Plan, v1::Report> {
 public:
  RunStream(WorkerServiceImpl* service, uint64_t session) : service_(service), session_(session) {}

  void Start() { StartRead(&plan_); }
  void Send(v1::Report report);
  void Close(const grpc::Status& status);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override { Close(grpc::Status::CANCELLED); }
  void OnDone() override;

 private:
  WorkerServiceImpl* const service_;
  const uint64_t session_;
  v1::Plan plan_;  // the read in flight

  std::mutex mutex_;
  std::deque<v1::Report> reports_;  // guarded by mutex_; the front is being written
  bool finished_ = false;           // guarded by mutex_
};

class WorkerServiceImpl : public WorkerService, public v1::Worker::CallbackService {
 public:
  explicit WorkerServiceImpl(WorkerInbox* inbox) : inbox_(inbox) {}
  ~WorkerServiceImpl() override { Shutdown(); }

  absl::Status Listen(const std::string& path);
  void Shutdown() override;
  void Send(uint64_t session, v1::Report report) override;

  grpc::ServerBidiReactor<v1::Plan, v1::Report>* Run(grpc::CallbackServerContext*) override;

  bool Post(WorkerCommand command) { return inbox_->TryPush(std::move(command)); }
  void Forget(RunStream* stream);

 private:
  WorkerInbox* const inbox_;
  std::unique_ptr<grpc::Server> server_;
  std::mutex mutex_;              // taken before a stream's own
  uint64_t sessions_ = 0;         // guarded by mutex_
  uint64_t session_ = 0;          // guarded by mutex_: of current_
  RunStream* current_ = nullptr;  // guarded by mutex_
};

void RunStream::Send(v1::Report report) {
  std::lock_guard lock(mutex_);
  if (finished_) return;
  reports_.push_back(std::move(report));
  if (reports_.size() == 1) StartWrite(&reports_.front());
}

void RunStream::Close(const grpc::Status& status) {
  {
    std::lock_guard lock(mutex_);
    if (finished_) return;
    finished_ = true;
  }
  Finish(status);
}

void RunStream::OnReadDone(bool ok) {
  if (!ok) return Close(grpc::Status::OK);
  if (!service_->Post(PlanArrived{session_, std::move(plan_)})) {
    return Close({grpc::StatusCode::RESOURCE_EXHAUSTED, "plans come faster than steps"});
  }
  plan_.Clear();
  std::lock_guard lock(mutex_);
  if (!finished_) StartRead(&plan_);  // nothing may start after Finish
}

void RunStream::OnWriteDone(bool ok) {
  if (!ok) return Close(grpc::Status::OK);
  std::lock_guard lock(mutex_);
  reports_.pop_front();
  if (!finished_ && !reports_.empty()) StartWrite(&reports_.front());
}

void RunStream::OnDone() {
  service_->Forget(this);
  service_->Post(SessionClosed{session_});
  delete this;
}

absl::Status WorkerServiceImpl::Listen(const std::string& path) {
  unlink(path.c_str());
  const mode_t mask = umask(0177);
  grpc::ServerBuilder builder;
  builder.AddListeningPort("unix:" + path, grpc::InsecureServerCredentials());
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
  umask(mask);
  if (!server_) return absl::UnavailableError(absl::StrCat("cannot listen on unix:", path));
  return absl::OkStatus();
}

void WorkerServiceImpl::Shutdown() {
  if (!server_) return;
  server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
  server_.reset();
}

void WorkerServiceImpl::Send(uint64_t session, v1::Report report) {
  std::lock_guard lock(mutex_);
  if (current_ && session_ == session) current_->Send(std::move(report));
}

grpc::ServerBidiReactor<v1::Plan, v1::Report>* WorkerServiceImpl::Run(
    grpc::CallbackServerContext*) {
  std::lock_guard lock(mutex_);
  if (current_) current_->Close({grpc::StatusCode::ABORTED, "another stream took over"});
  session_ = ++sessions_;
  current_ = new RunStream(this, session_);
  if (Post(SessionOpened{session_})) {
    current_->Start();
  } else {  // it hangs: without a hello the coordinator tries again
    current_->Close({grpc::StatusCode::UNAVAILABLE, "the worker does not take commands"});
  }
  return current_;
}

void WorkerServiceImpl::Forget(RunStream* stream) {
  std::lock_guard lock(mutex_);
  if (current_ == stream) current_ = nullptr;
}

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerService>> WorkerService::Serve(const std::string& socket_path,
                                                                    WorkerInbox* inbox) {
  auto service = std::make_unique<WorkerServiceImpl>(inbox);
  if (absl::Status status = service->Listen(socket_path); !status.ok()) return status;
  return service;
}

}  // namespace sparsekv
