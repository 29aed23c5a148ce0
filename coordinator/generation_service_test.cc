// The public port over a real gRPC server and client; the engine stands between fakes.
#include "coordinator/generation_service.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>

#include "base/check.h"
#include "base/limits.h"
#include "coordinator/engine_fixture.h"
#include "coordinator/grpc_server.h"
#include "coordinator/loopback.h"
#include "sparsekv/v1/generation.grpc.pb.h"

namespace sparsekv {
namespace {

using grpc::StatusCode;
using std::chrono::milliseconds;

// A coordinator without its links: the fakes are turned by a timer on the strand.
class Coordinator {
 public:
  explicit Coordinator(int listen_fd, uint32_t blocks = 64)
      : store_(std::make_shared<FakeStoreLink>(1, blocks)),
        worker_(std::make_shared<FakeWorkerLink>(0)),
        blocks_(blocks),
        timer_(strand_.executor()) {
    worker_->hello = TestHello(0);
    worker_->hello.mutable_model()->set_context(1 << 20);
    worker_->hello.set_label_pages(1 << 16);
    strand_.Do([this, listen_fd] {
      engine_ = std::make_unique<Engine>(
          Engine::Options{.strand = strand_.executor(),
                          .pool = pool_.get_executor(),
                          .codec = &codec_,
                          .metrics = &metrics_,
                          .store = store_,
                          .workers = {worker_},
                          .on_serving = [this](bool on) { server_->SetServing(on); }});
      service_ = MakeGenerationService(
          {strand_.executor(), pool_.get_executor(), engine_.get(), &codec_, &templates_});
      server_ = GrpcServer::Make(strand_.executor(), listen_fd, service_.get()).value();
      engine_->Start();
      server_->Start();
    });
  }
  ~Coordinator() {
    strand_.Do([this] {
      engine_->FailAll(absl::UnavailableError("the test is over"));
      server_->StopAccepting();
    });
    server_->Shutdown(0);
    pool_.join();
    strand_.Join();
  }

  void Begin() {
    strand_.Do([this] {
      store_->Up();
      worker_->Up(1);
      Turn();
    });
  }
  void Pause(bool paused) {
    strand_.Do([this, paused] { paused_ = paused; });
  }
  // What a stop string or a client that left gives back follows a little later.
  bool BlocksComeBack() {
    for (int i = 0; i < 1000; ++i) {
      if (strand_.Do([this] { return store_->FreeBlocks(0) == blocks_; })) return true;
      std::this_thread::sleep_for(milliseconds(2));
    }
    return false;
  }
  FakeWorkerLink& worker() { return *worker_; }
  Engine& engine() { return *engine_; }
  StrandThread& strand() { return strand_; }

 private:
  void Turn() {
    if (!paused_ && worker_->up()) worker_->Step();
    store_->Deliver();
    timer_.expires_after(std::chrono::microseconds(200));
    timer_.async_wait([this](boost::system::error_code error) {
      if (!error) Turn();
    });
  }

  // A checkpoint's templates, from a folder that may be gone once they are loaded.
  static chat::ModelTemplates LoadTemplates() {
    std::string folder = ::testing::TempDir() + "/service_XXXXXX";
    CHECK(mkdtemp(folder.data()) != nullptr);
    std::ofstream(folder + "/chat_template.jinja")
        << "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ x }};{% endfor %}"
           "{% if tools %}{{ raise_exception('no tools here') }}{% endif %}"
           "{% if add_generation_prompt %}a:{% endif %}";
    auto templates = chat::ModelTemplates::Load(folder);
    std::filesystem::remove_all(folder);
    return templates;
  }

  ByteCodec codec_;
  const chat::ModelTemplates templates_ = LoadTemplates();
  Metrics metrics_{1};
  const std::shared_ptr<FakeStoreLink> store_;
  const std::shared_ptr<FakeWorkerLink> worker_;
  const uint32_t blocks_;
  StrandThread strand_;
  boost::asio::thread_pool pool_{1};
  boost::asio::steady_timer timer_;
  bool paused_ = false;
  std::unique_ptr<Engine> engine_;
  std::shared_ptr<grpc::Service> service_;
  std::unique_ptr<GrpcServer> server_;
};

class GenerationServiceTest : public ::testing::Test {
 protected:
  GenerationServiceTest()
      : coordinator_(std::make_unique<Coordinator>(listener_.Inherit())),
        channel_(grpc::CreateChannel(listener_.address(), grpc::InsecureChannelCredentials())),
        stub_(v1::Generation::NewStub(channel_)) {
    coordinator_->Begin();
  }

  struct Outcome {
    v1::GenerateResponse all;
    int messages = 0;
    grpc::Status status;
  };
  Outcome Generate(const v1::GenerateRequest& request, milliseconds limit = milliseconds(20000)) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + limit);
    context.set_wait_for_ready(true);
    auto reader = stub_->Generate(&context, request);
    Outcome outcome;
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
      MergeResponse(std::move(response), &outcome.all);
      ++outcome.messages;
    }
    outcome.status = reader->Finish();
    return outcome;
  }

  static v1::GenerateRequest Request(const std::string& prompt, uint32_t tokens) {
    return EngineFixture::Request(prompt, tokens);
  }

  LoopbackListener listener_;
  std::unique_ptr<Coordinator> coordinator_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Generation::Stub> stub_;
};

TEST_F(GenerationServiceTest, StreamsDeltasThenTheEnd) {
  auto request = Request("prompt", 30);
  request.set_seed(9);
  const Outcome outcome = Generate(request);
  ASSERT_TRUE(outcome.status.ok()) << outcome.status.error_message();
  EXPECT_EQ(outcome.all.text(), "abcdefghijklmnopqrstuvwxyzabcd");
  EXPECT_EQ(outcome.all.token_ids_size(), 30);
  EXPECT_EQ(outcome.all.seed(), 9u);
  EXPECT_TRUE(outcome.all.request_id().starts_with("req-"));
  EXPECT_EQ(outcome.all.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_GT(outcome.messages, 1);
  EXPECT_TRUE(coordinator_->BlocksComeBack());
}

TEST_F(GenerationServiceTest, BadInputGetsOneLineThatNamesTheField) {
  auto request = Request("prompt", 30);
  request.set_top_p(2);
  const Outcome outcome = Generate(request);
  EXPECT_EQ(outcome.status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(outcome.status.error_message(), "top_p: 2 is not within (0, 1]");
  EXPECT_EQ(outcome.messages, 0);
}

TEST_F(GenerationServiceTest, TokenizesAndDescribesTheModel) {
  grpc::ClientContext first, second;
  v1::TokenizeRequest text;
  text.set_text("ab");
  v1::TokenizeResponse ids;
  ASSERT_TRUE(stub_->Tokenize(&first, text, &ids).ok());
  ASSERT_EQ(ids.ids_size(), 2);
  EXPECT_EQ(ids.ids(1), uint32_t{'b'});
  v1::ModelInfoResponse model;
  ASSERT_TRUE(stub_->ModelInfo(&second, {}, &model).ok());
  EXPECT_EQ(model.vocab_size(), 256u);
  EXPECT_EQ(model.default_max_new_tokens(), kDefaultMaxNewTokens);
  EXPECT_EQ(model.default_attention(), v1::ATTENTION_DOUBLE_SPARSITY);
}

TEST_F(GenerationServiceTest, RendersChats) {
  const auto render = [&](const v1::RenderChatRequest& request, v1::RenderChatResponse* response) {
    grpc::ClientContext context;
    return stub_->RenderChat(&context, request, response);
  };
  v1::RenderChatRequest request;
  request.set_messages(R"([{"role": "user", "content": "hi"}])");
  request.set_variables(R"({"x": 7})");
  request.set_add_generation_prompt(true);
  v1::RenderChatResponse response;
  ASSERT_TRUE(render(request, &response).ok());
  EXPECT_EQ(response.text(), "u:hi7;a:");
  ASSERT_EQ(response.token_ids_size(), 8);
  EXPECT_EQ(response.token_ids(0), uint32_t{'u'});

  const auto expect = [&](const std::string& message) {
    const grpc::Status status = render(request, &response);
    EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(status.error_message(), message);
  };
  request.set_tools("[1]");
  expect("line 1: no tools here");
  request.set_tools("{");
  expect("tools: is not JSON (byte 2)");
  request.set_tools(std::string(kMaxChatBytes, ' '));
  expect("messages: with tools and variables 16777259 bytes, more than 16777216");
  request.clear_tools();
  request.set_messages("[]");
  expect("messages: there are none");
}

TEST_F(GenerationServiceTest, AClientThatCancelsFreesEverything) {
  for (const bool while_prefilling : {true, false}) {
    coordinator_->Pause(while_prefilling);
    grpc::ClientContext context;
    auto reader = stub_->Generate(&context, Request("p", 4000));
    v1::GenerateResponse response;
    ASSERT_TRUE(reader->Read(&response));  // request_id and seed
    if (!while_prefilling) {
      ASSERT_TRUE(reader->Read(&response));
    }
    context.TryCancel();
    while (reader->Read(&response)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), StatusCode::CANCELLED);
    coordinator_->Pause(false);
    EXPECT_TRUE(coordinator_->BlocksComeBack());
  }
}

TEST_F(GenerationServiceTest, DeadlinesHoldInEveryPhase) {
  EXPECT_EQ(Generate(Request("p", 4000), milliseconds(60)).status.error_code(),
            StatusCode::DEADLINE_EXCEEDED);  // decoding
  EXPECT_TRUE(coordinator_->BlocksComeBack());
  coordinator_->Pause(true);
  EXPECT_EQ(Generate(Request("p", 4000), milliseconds(60)).status.error_code(),
            StatusCode::DEADLINE_EXCEEDED);  // prefill
  coordinator_->Pause(false);
  EXPECT_TRUE(coordinator_->BlocksComeBack());
  coordinator_->strand().Do([this] { coordinator_->worker().Down(); });
  EXPECT_EQ(Generate(Request("p", 4000), milliseconds(60)).status.error_code(),
            StatusCode::DEADLINE_EXCEEDED);  // queued
}

TEST_F(GenerationServiceTest, ASlowReaderGetsEverythingInFewMessages) {
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, Request("p", 3000));
  v1::GenerateResponse response, all;
  ASSERT_TRUE(reader->Read(&response));
  for (int i = 0; i < 500; ++i) {  // until the server has made every token
    std::this_thread::sleep_for(milliseconds(10));
    if (coordinator_->strand().Do([this] { return coordinator_->worker().live().empty(); })) break;
  }
  int messages = 0;
  while (reader->Read(&response)) {
    MergeResponse(std::move(response), &all);
    ++messages;
  }
  ASSERT_TRUE(reader->Finish().ok());
  EXPECT_EQ(all.token_ids_size(), 3000);
  EXPECT_EQ(all.text().size(), 3000u);
  for (int i = 0; i < 3000; ++i) ASSERT_EQ(all.token_ids(i), 'a' + static_cast<uint32_t>(i) % 26);
  EXPECT_EQ(all.usage().completion_tokens(), 3000u);
}

TEST_F(GenerationServiceTest, ManyClientsThatComeAndLeave) {
  std::vector<std::thread> clients;
  std::atomic<int> completed{0};
  for (unsigned i = 0; i < 8; ++i) {
    clients.emplace_back([this, i, &completed] {
      std::mt19937 random(i);
      for (int round = 0; round < 25; ++round) {
        const bool leave = random() % 3 == 0;
        const auto limit = leave ? milliseconds(1 + random() % 30) : milliseconds(20000);
        const Outcome outcome = Generate(Request("p", 1 + random() % 60), limit);
        if (outcome.status.ok()) ++completed;
        if (!leave) {
          EXPECT_TRUE(outcome.status.ok()) << outcome.status.error_message();
        }
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_GT(completed, 100);
  EXPECT_TRUE(coordinator_->BlocksComeBack());
}

TEST_F(GenerationServiceTest, ASuccessorServesTheSamePort) {
  ASSERT_TRUE(Generate(Request("p", 3)).status.ok());
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, Request("p", 4000));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  coordinator_.reset();  // with a call under way
  while (reader->Read(&response)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), StatusCode::UNAVAILABLE);
  std::thread late([this] {
    std::this_thread::sleep_for(milliseconds(50));
    coordinator_ = std::make_unique<Coordinator>(listener_.Inherit());
    coordinator_->Begin();
  });
  const Outcome outcome = Generate(Request("p", 3));  // waits in the backlog
  late.join();
  EXPECT_TRUE(outcome.status.ok()) << outcome.status.error_message();
}

// Health and reflection have no generated code here: their messages are a few bytes.
std::string Bytes(const grpc::ByteBuffer& buffer) {
  grpc::Slice slice;
  if (!buffer.DumpToSingleSlice(&slice).ok()) return "";
  return std::string(reinterpret_cast<const char*>(slice.begin()), slice.size());
}
grpc::ByteBuffer Buffer(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

TEST_F(GenerationServiceTest, HealthFollowsTheWorkers) {
  const auto check = [this](const std::string& service) {
    grpc::GenericStub stub(channel_);
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    const grpc::ByteBuffer request =
        Buffer("\x0a" + std::string(1, static_cast<char>(service.size())) + service);
    auto call = stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check", request, &queue);
    call->StartCall();
    grpc::ByteBuffer response;
    grpc::Status status;
    call->Finish(&response, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    EXPECT_TRUE(queue.Next(&tag, &ok));
    return status.ok() ? Bytes(response) : status.error_message();
  };
  EXPECT_EQ(check(""), "\x08\x01");  // SERVING
  EXPECT_EQ(check("sparsekv.v1.Generation"), "\x08\x01");
  coordinator_->strand().Do([this] { coordinator_->worker().Down(); });
  EXPECT_EQ(check(""), "\x08\x02");  // NOT_SERVING
  EXPECT_EQ(check("sparsekv.v1.Generation"), "\x08\x02");
}

TEST_F(GenerationServiceTest, ReflectionNamesTheService) {
  grpc::GenericStub stub(channel_);
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  auto call = stub.PrepareCall(
      &context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  void* tag = nullptr;
  bool ok = false;
  const auto wait = [&] { return queue.Next(&tag, &ok) && ok; };
  call->StartCall(nullptr);
  ASSERT_TRUE(wait());
  call->Write(Buffer("\x3a\x01*"), nullptr);  // list_services
  ASSERT_TRUE(wait());
  grpc::ByteBuffer response;
  call->Read(&response, nullptr);
  ASSERT_TRUE(wait());
  EXPECT_NE(Bytes(response).find("sparsekv.v1.Generation"), std::string::npos);
  context.TryCancel();
  grpc::Status status;
  call->Finish(&status, nullptr);
  wait();
}

}  // namespace
}  // namespace sparsekv
