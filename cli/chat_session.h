#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/sampling_options.h"
#include "sparsekv/v1/generation.grpc.pb.h"

namespace sparsekv {

// A conversation with a server: the messages so far, and one call at a time. Used by one thread;
// Stop may be called by any.
class ChatSession {
 public:
  ChatSession(const std::string& address, const SamplingOptions& sampling);

  // Whether the server can be reached and its model has a chat template.
  absl::Status Check();

  // Begins anew. `system` may be empty.
  void Reset(const std::string& system);

  struct Answer {
    std::string text;
    v1::GenerateResponse last;
    bool stopped = false;  // by Stop
  };
  // Says `text` and hands on the answer as it comes. An answer that was stopped stays in the
  // conversation as far as it came; after an error the conversation is as before.
  absl::StatusOr<Answer> Say(const std::string& text,
                             const std::function<void(std::string_view)>& on_text);

  // Ends the answer that is coming, if there is one.
  bool Stop();

 private:
  // Around a call, so that Stop reaches it.
  class InFlight;

  absl::StatusOr<v1::GenerateRequest> MakeRequest(const nlohmann::ordered_json& messages);
  absl::Status ToStatus(const grpc::Status& status) const;

  const std::string address_;
  const SamplingOptions& sampling_;
  const std::unique_ptr<v1::Generation::Stub> stub_;
  nlohmann::ordered_json messages_ = nlohmann::ordered_json::array();

  std::mutex mutex_;
  grpc::ClientContext* call_ = nullptr;  // protected by mutex_
  bool stopped_ = false;                 // protected by mutex_: that call
};

}  // namespace sparsekv
