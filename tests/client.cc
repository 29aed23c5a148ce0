#include "tests/client.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cmath>

#include "sparsekv/v1/generation.grpc.pb.h"

namespace sparsekv::testing {

struct Client::Stubs {
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Generation::Stub> generation;
};

Client::Client(const std::string& address) : stubs_(std::make_unique<Stubs>()) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 200);
  stubs_->channel =
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  stubs_->generation = v1::Generation::NewStub(stubs_->channel);
}

Client::~Client() = default;

Reply Client::Generate(const v1::GenerateRequest& request, const Call& call) {
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  const double deadline_s = call.deadline_s > 0 ? call.deadline_s : 120;
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::milliseconds(std::llround(deadline_s * 1e3)));
  Reply reply;
  auto reader = stubs_->generation->Generate(&context, request);
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
    if (reply.first.request_id().empty()) reply.first = response;
    reply.ids.insert(reply.ids.end(), response.token_ids().begin(), response.token_ids().end());
    reply.logprobs.insert(reply.logprobs.end(), response.logprobs().begin(),
                          response.logprobs().end());
    reply.text += response.text();
    reply.last = response;
    if (reply.ids.size() >= call.cancel_after_tokens) context.TryCancel();
  }
  const grpc::Status status = reader->Finish();
  reply.code = status.error_code();
  reply.message = status.error_message();
  return reply;
}

v1::ModelInfoResponse Client::ModelInfo() {
  grpc::ClientContext context;
  v1::ModelInfoResponse response;
  stubs_->generation->ModelInfo(&context, {}, &response);
  return response;
}

std::vector<uint32_t> Client::Tokenize(const std::string& text) {
  grpc::ClientContext context;
  v1::TokenizeRequest request;
  request.set_text(text);
  v1::TokenizeResponse response;
  stubs_->generation->Tokenize(&context, request, &response);
  return {response.ids().begin(), response.ids().end()};
}

// HealthCheckRequest {} is the empty message, and HealthCheckResponse {status: SERVING} the bytes
// 08 01: no generated stub is needed.
bool Client::Healthy() {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
  grpc::TemplatedGenericStub<grpc::ByteBuffer, grpc::ByteBuffer> stub(stubs_->channel);
  grpc::CompletionQueue queue;
  grpc::Slice empty("");
  const grpc::ByteBuffer request(&empty, 1);
  auto call = stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check", request, &queue);
  call->StartCall();
  grpc::ByteBuffer response;
  grpc::Status status;
  call->Finish(&response, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  if (!status.ok()) return false;
  grpc::Slice bytes;
  return response.DumpToSingleSlice(&bytes).ok() && bytes.size() == 2 && bytes.begin()[0] == 8 &&
         bytes.begin()[1] == 1;
}

v1::GenerateRequest TextRequest(const std::string& prompt, uint32_t max_new_tokens) {
  v1::GenerateRequest request;
  request.set_text(prompt);
  request.set_max_new_tokens(max_new_tokens);
  return request;
}

v1::GenerateRequest IdsRequest(const std::vector<uint32_t>& ids, uint32_t max_new_tokens) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Add(ids.begin(), ids.end());
  request.set_max_new_tokens(max_new_tokens);
  return request;
}

}  // namespace sparsekv::testing
