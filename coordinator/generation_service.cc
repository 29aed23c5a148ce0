#include "coordinator/generation_service.h"

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <boost/asio/post.hpp>
#include <chrono>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/concat.h"
#include "base/limits.h"
#include "coordinator/grpc_client.h"
#include "coordinator/response_stream.h"
#include "sparsekv/v1/generation.grpc.pb.h"

namespace sparsekv {

namespace {

using boost::asio::post;

// The client's own clock ends a call a little before ours does.
constexpr std::chrono::milliseconds kDeadlineSlack{50};

// One Generate call. All its state belongs to the strand; gRPC's threads only post. It keeps itself
// alive until OnDone.
class GenerateReactor final : public grpc::ServerWriteReactor<v1::GenerateResponse>,
                              public ResponseStream,
                              public std::enable_shared_from_this<GenerateReactor> {
 public:
  GenerateReactor(const GenerationServiceOptions& options, grpc::CallbackServerContext* context)
      : strand_(options.strand), engine_(options.engine), context_(context) {}

  // `request` belongs to the call, which may be over before the request has been read.
  void Begin(const v1::GenerateRequest& request) {
    self_ = shared_from_this();
    post(strand_, [self = self_, wire = std::make_shared<v1::GenerateRequest>(request)] {
      self->key_ = self->engine_->Submit(wire, self);
    });
  }

  void OnCancel() override {
    const bool late = context_->deadline() <= std::chrono::system_clock::now() + kDeadlineSlack;
    post(strand_, [self = shared_from_this(), late] {
      self->engine_->Cancel(self->key_, late ? absl::DeadlineExceededError("the deadline is over")
                                             : absl::CancelledError("the client left"));
    });
  }
  void OnWriteDone(bool ok) override {
    post(strand_, [self = shared_from_this(), ok] {
      self->writing_ = false;
      self->broken_ |= !ok;
      self->Advance();
    });
  }
  void OnDone() override {
    post(strand_, [self = std::move(self_)] {});
  }

  void Write(v1::GenerateResponse delta) override {
    CHECK(!status_);
    if (pending_) {
      MergeResponse(std::move(delta), &*pending_);
    } else {
      pending_ = std::move(delta);
    }
    Advance();
  }
  void Finish(const absl::Status& status) override {
    CHECK(!status_);
    status_ = status;
    Advance();
  }

 private:
  using Reactor = grpc::ServerWriteReactor<v1::GenerateResponse>;

  void Advance() {
    if (writing_ || finished_) return;
    if (pending_ && !broken_) {
      in_flight_ = *std::exchange(pending_, std::nullopt);
      writing_ = true;
      StartWrite(&in_flight_);
    } else if (status_) {
      finished_ = true;
      Reactor::Finish(ToGrpc(*status_));
    }
  }

  const boost::asio::any_io_executor strand_;
  Engine* const engine_;
  grpc::CallbackServerContext* const context_;
  std::shared_ptr<GenerateReactor> self_;  // until OnDone

  uint64_t key_ = 0;
  v1::GenerateResponse in_flight_;
  std::optional<v1::GenerateResponse> pending_;
  std::optional<absl::Status> status_;
  bool writing_ = false;
  bool broken_ = false;    // a write failed: nothing more reaches the client
  bool finished_ = false;  // gRPC has been told
};

class GenerationService final : public v1::Generation::CallbackService {
 public:
  explicit GenerationService(GenerationServiceOptions options) : options_(std::move(options)) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override {
    auto reactor = std::make_shared<GenerateReactor>(options_, context);
    reactor->Begin(*request);
    return reactor.get();
  }

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override {
    return InPool(context, "Tokenize", [this, request, response] {
      auto ids = options_.codec->Encode(request->text(), !request->no_bos());
      if (ids.ok()) response->mutable_ids()->Add(ids->begin(), ids->end());
      return ids.status();
    });
  }

  grpc::ServerUnaryReactor* RenderChat(grpc::CallbackServerContext* context,
                                       const v1::RenderChatRequest* request,
                                       v1::RenderChatResponse* response) override {
    return InPool(context, "RenderChat",
                  [this, request, response] { return Render(*request, response); });
  }

  grpc::ServerUnaryReactor* ModelInfo(grpc::CallbackServerContext* context,
                                      const v1::ModelInfoRequest*,
                                      v1::ModelInfoResponse* response) override {
    auto* reactor = context->DefaultReactor();
    post(options_.strand, [this, reactor, response] {
      auto info = options_.engine->ModelInfo();
      if (info.ok()) *response = *std::move(info);
      reactor->Finish(ToGrpc(info.status()));
    });
    return reactor;
  }

 private:
  // Runs `work` in the pool, which takes seconds for a long text, and finishes with its status.
  template <typename Work>
  grpc::ServerUnaryReactor* InPool(grpc::CallbackServerContext* context, const char* call,
                                   Work work) {
    auto* reactor = context->DefaultReactor();
    if (in_pool_.fetch_add(1) >= kMaxQueued) {
      in_pool_.fetch_sub(1);
      reactor->Finish(
          {grpc::StatusCode::RESOURCE_EXHAUSTED, Concat("queue: too many calls of ", call)});
      return reactor;
    }
    post(options_.pool, [this, reactor, work = std::move(work)] {
      const absl::Status status = work();
      in_pool_.fetch_sub(1);
      reactor->Finish(ToGrpc(status));
    });
    return reactor;
  }

  absl::Status Render(const v1::RenderChatRequest& request,
                      v1::RenderChatResponse* response) const {
    const size_t bytes =
        request.messages().size() + request.tools().size() + request.variables().size();
    if (bytes > kMaxChatBytes) {
      return absl::InvalidArgumentError(Concat("messages: with tools and variables ", bytes,
                                               " bytes, more than ", kMaxChatBytes));
    }
    auto text =
        options_.templates->Render({.messages = request.messages(),
                                    .tools = request.tools(),
                                    .variables = request.variables(),
                                    .add_generation_prompt = request.add_generation_prompt(),
                                    .now = chat::LocalTime()});
    if (!text.ok()) return text.status();
    auto ids = options_.codec->Encode(*text, /*bos=*/false);
    if (!ids.ok()) return ids.status();
    response->set_text(*std::move(text));
    response->mutable_token_ids()->Add(ids->begin(), ids->end());
    return absl::OkStatus();
  }

  const GenerationServiceOptions options_;
  std::atomic<uint32_t> in_pool_{0};
};

}  // namespace

std::shared_ptr<grpc::Service> MakeGenerationService(GenerationServiceOptions options) {
  return std::make_shared<GenerationService>(std::move(options));
}

}  // namespace sparsekv
