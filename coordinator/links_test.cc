// Both links against small gRPC servers on Unix sockets that die and come back.
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <atomic>
#include <functional>
#include <mutex>
#include <vector>

#include "coordinator/loopback.h"
#include "coordinator/store_link.h"
#include "coordinator/worker_link.h"
#include "sparsekv/v1/kv_store.grpc.pb.h"
#include "sparsekv/v1/worker.grpc.pb.h"

namespace sparsekv {
namespace {

class TempSocket {
 public:
  TempSocket() {
    char name[] = "/tmp/sparsekv-links-XXXXXX";
    CHECK(mkdtemp(name) != nullptr);
    directory_ = name;
  }
  ~TempSocket() {
    unlink(path().c_str());
    rmdir(directory_.c_str());
  }
  std::string path() const { return directory_ + "/socket"; }

 private:
  std::string directory_;
};

std::unique_ptr<grpc::Server> Serve(const std::string& path, grpc::Service* service) {
  unlink(path.c_str());
  grpc::ServerBuilder builder;
  builder.AddListeningPort("unix:" + path, grpc::InsecureServerCredentials());
  builder.RegisterService(service);
  return builder.BuildAndStart();
}

// Waits for what another thread does.
bool Eventually(const std::function<bool()>& done) {
  for (int i = 0; i < 5000; ++i) {
    if (done()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return false;
}

// Says hello, then answers every plan with a report of its epoch.
class EchoWorker final : public v1::Worker::Service {
 public:
  explicit EchoWorker(uint64_t boot_id, bool hello = true) : boot_id_(boot_id), hello_(hello) {}

  grpc::Status Run(grpc::ServerContext*,
                   grpc::ServerReaderWriter<v1::Report, v1::Plan>* stream) override {
    v1::Report report;
    report.set_worker_boot_id(boot_id_);
    if (hello_) report.mutable_hello()->set_max_batch(3);
    stream->Write(report);
    v1::Plan plan;
    while (stream->Read(&plan)) {
      v1::Report echo;
      echo.set_worker_boot_id(boot_id_);
      echo.set_epoch(plan.epoch());
      stream->Write(echo);
    }
    return grpc::Status::OK;
  }

 private:
  const uint64_t boot_id_;
  const bool hello_;
};

// Written on the strand, read by the test.
class WorkerEvents final : public WorkerLink::Listener {
 public:
  void OnWorkerUp(uint32_t worker, uint64_t boot_id, const v1::WorkerHello& hello) override {
    EXPECT_EQ(worker, 5u);
    EXPECT_EQ(hello.max_batch(), 3u);
    boot = boot_id;
    ++ups;
  }
  void OnWorkerReport(uint32_t, const v1::Report& report) override {
    if (report.epoch() == 0) return;  // the hello
    EXPECT_EQ(report.epoch(), epoch + 1);
    epoch = report.epoch();
  }
  void OnWorkerDown(uint32_t, const absl::Status&) override {
    epoch = 0;
    ++downs;
  }
  std::atomic<uint64_t> boot{0}, epoch{0};
  std::atomic<int> ups{0}, downs{0};
};

TEST(WorkerLink, ConnectsSendsInOrderAndComesBack) {
  TempSocket socket;
  StrandThread strand;
  Gate gate;
  WorkerEvents events;
  const auto link = MakeWorkerLink(strand.executor(), &gate, 5, socket.path());
  strand.Do([&] { link->Start(&events); });
  std::this_thread::sleep_for(std::chrono::milliseconds(60));  // nobody is there yet
  for (uint64_t boot = 1; boot <= 3; ++boot) {
    EchoWorker worker(boot);
    auto server = Serve(socket.path(), &worker);
    ASSERT_TRUE(Eventually([&] { return events.boot == boot; }));
    strand.Do([&] {
      for (uint64_t epoch = 1; epoch <= 50; ++epoch) {
        v1::Plan plan;
        plan.set_epoch(epoch);
        link->Send(std::move(plan));
      }
    });
    EXPECT_TRUE(Eventually([&] { return events.epoch == 50; }));
    strand.Do([&] { EXPECT_EQ(link->unsent(), 0u); });
    server->Shutdown(std::chrono::system_clock::now());
    ASSERT_TRUE(Eventually([&] { return events.downs == static_cast<int>(boot); }));
  }
  EXPECT_EQ(events.ups, 3);
  strand.Do([&] { link->Stop(); });
  gate.CloseAndWait();
}

TEST(WorkerLink, AStreamWithoutHelloIsBroken) {
  TempSocket socket;
  StrandThread strand;
  Gate gate;
  WorkerEvents events;
  EchoWorker silent(1, /*hello=*/false);
  auto server = Serve(socket.path(), &silent);
  const auto link = MakeWorkerLink(strand.executor(), &gate, 5, socket.path());
  strand.Do([&] { link->Start(&events); });
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_EQ(events.ups, 0);
  strand.Do([&] { link->Stop(); });
  gate.CloseAndWait();
  server->Shutdown(std::chrono::system_clock::now());
}

TEST(WorkerLink, StopsWithAStreamOpen) {
  TempSocket socket;
  StrandThread strand;
  Gate gate;
  WorkerEvents events;
  EchoWorker worker(1);
  auto server = Serve(socket.path(), &worker);
  auto link = MakeWorkerLink(strand.executor(), &gate, 5, socket.path());
  strand.Do([&] { link->Start(&events); });
  ASSERT_TRUE(Eventually([&] { return events.ups == 1; }));
  strand.Do([&] { link->Stop(); });
  gate.CloseAndWait();
  EXPECT_EQ(events.downs, 0);
  server->Shutdown(std::chrono::system_clock::now());
}

class SmallStore final : public v1::KvStore::Service {
 public:
  explicit SmallStore(uint64_t boot_id) : boot_id_(boot_id) {}

  grpc::Status Describe(grpc::ServerContext*, const v1::DescribeRequest*,
                        v1::DescribeResponse* response) override {
    response->set_boot_id(boot_id_);
    response->set_pools(1);
    return grpc::Status::OK;
  }
  grpc::Status Allocate(grpc::ServerContext* context, const v1::AllocateRequest* request,
                        v1::AllocateResponse* response) override {
    response->set_boot_id(boot_id_);
    if (request->tokens() == 0) {  // hangs
      while (!context->IsCancelled()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    if (request->tokens() > 100) return {grpc::StatusCode::RESOURCE_EXHAUSTED, "not now"};
    response->add_blocks(7);
    return grpc::Status::OK;
  }

 private:
  const uint64_t boot_id_;
};

class StoreEvents final : public StoreLink::Listener {
 public:
  void OnStoreUp(const v1::DescribeResponse& store) override { boot = store.boot_id(); }
  void OnStoreDown(const absl::Status&) override {
    boot = 0;
    ++downs;
  }
  std::atomic<uint64_t> boot{0};
  std::atomic<int> downs{0};
};

absl::StatusOr<v1::AllocateResponse> Allocate(StrandThread& strand, StoreLink& link,
                                              uint32_t tokens) {
  std::promise<absl::StatusOr<v1::AllocateResponse>> answer;
  v1::AllocateRequest request;
  request.set_tokens(tokens);
  strand.Do([&] { link.Allocate(request, [&](auto got) { answer.set_value(std::move(got)); }); });
  return answer.get_future().get();
}

TEST(StoreLink, CallsFailWhileTheStoreIsAwayAndItComesBack) {
  TempSocket socket;
  StrandThread strand;
  Gate gate;
  StoreEvents events;
  const auto link = MakeStoreLink(strand.executor(), &gate, socket.path());
  strand.Do([&] { link->Start(&events); });
  EXPECT_TRUE(absl::IsUnavailable(Allocate(strand, *link, 1).status()));
  for (uint64_t boot = 1; boot <= 2; ++boot) {
    SmallStore store(boot);
    auto server = Serve(socket.path(), &store);
    ASSERT_TRUE(Eventually([&] { return events.boot == boot; }));
    EXPECT_EQ(Allocate(strand, *link, 1)->blocks(0), 7u);
    EXPECT_TRUE(absl::IsResourceExhausted(Allocate(strand, *link, 101).status()));
    EXPECT_EQ(events.boot, boot);  // an answer is an answer
    server->Shutdown(std::chrono::system_clock::now());
    server.reset();
    // Nobody calls: the heartbeat notices.
    ASSERT_TRUE(Eventually([&] { return events.downs == static_cast<int>(boot); }));
    EXPECT_TRUE(absl::IsUnavailable(Allocate(strand, *link, 1).status()));
  }
  strand.Do([&] { link->Stop(); });
  gate.CloseAndWait();
}

TEST(StoreLink, AHangingCallIsGivenUpWhenTheStoreGoes) {
  TempSocket socket;
  StrandThread strand;
  Gate gate;
  StoreEvents events;
  const auto link = MakeStoreLink(strand.executor(), &gate, socket.path());
  SmallStore first(1);
  auto server = Serve(socket.path(), &first);
  strand.Do([&] { link->Start(&events); });
  ASSERT_TRUE(Eventually([&] { return events.boot == 1; }));
  std::thread killer([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    server->Shutdown(std::chrono::system_clock::now());
  });
  EXPECT_TRUE(absl::IsUnavailable(Allocate(strand, *link, 0).status()));
  killer.join();
  strand.Do([&] { link->Stop(); });
  gate.CloseAndWait();
}

}  // namespace
}  // namespace sparsekv
