#include "cli/chat_session.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/limits.h"

namespace sparsekv {

namespace {

using nlohmann::ordered_json;

std::unique_ptr<v1::Generation::Stub> Connect(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  return v1::Generation::NewStub(
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
}

ordered_json Message(const char* role, const std::string& content) {
  return {{"role", role}, {"content", content}};
}

}  // namespace

class ChatSession::InFlight {
 public:
  explicit InFlight(ChatSession* session) : session_(*session) {
    const std::lock_guard lock(session_.mutex_);
    session_.call_ = &context;
    session_.stopped_ = false;
  }
  ~InFlight() {
    const std::lock_guard lock(session_.mutex_);
    session_.call_ = nullptr;
  }
  bool stopped() const {
    const std::lock_guard lock(session_.mutex_);
    return session_.stopped_;
  }

  grpc::ClientContext context;

 private:
  ChatSession& session_;
};

ChatSession::ChatSession(const std::string& address, const SamplingOptions& sampling)
    : address_(address), sampling_(sampling), stub_(Connect(address)) {}

absl::Status ChatSession::Check() {
  const auto request = MakeRequest(ordered_json::array({Message("user", "x")}));
  // A template may want more than one turn; that it is there is what counts.
  if (absl::IsInvalidArgument(request.status())) return absl::OkStatus();
  return request.status();
}

void ChatSession::Reset(const std::string& system) {
  messages_ = ordered_json::array();
  if (!system.empty()) messages_.push_back(Message("system", system));
}

absl::Status ChatSession::ToStatus(const grpc::Status& status) const {
  if (status.ok()) return absl::OkStatus();
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  return absl::Status(code, absl::StrCat(address_, ": ", absl::StatusCodeToString(code), ": ",
                                         status.error_message()));
}

absl::StatusOr<v1::GenerateRequest> ChatSession::MakeRequest(const ordered_json& messages) {
  v1::RenderChatRequest render;
  render.set_messages(messages.dump(-1, ' ', false, ordered_json::error_handler_t::replace));
  render.set_add_generation_prompt(true);
  v1::RenderChatResponse rendered;
  InFlight call(this);
  if (absl::Status status = ToStatus(stub_->RenderChat(&call.context, render, &rendered));
      !status.ok()) {
    return status;
  }
  v1::GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Swap(rendered.mutable_token_ids());
  if (absl::Status status = sampling_.Apply(&request); !status.ok()) return status;
  return request;
}

absl::StatusOr<ChatSession::Answer> ChatSession::Say(
    const std::string& text, const std::function<void(std::string_view)>& on_text) {
  ordered_json messages = messages_;
  messages.push_back(Message("user", text));
  const auto request = MakeRequest(messages);
  if (!request.ok()) return request.status();
  InFlight call(this);
  auto reader = stub_->Generate(&call.context, *request);
  Answer answer;
  for (v1::GenerateResponse response; reader->Read(&response);) {
    answer.text += response.text();
    on_text(response.text());
    answer.last = response;
  }
  const grpc::Status status = reader->Finish();
  answer.stopped = call.stopped() && status.error_code() == grpc::StatusCode::CANCELLED;
  if (!status.ok() && !answer.stopped) return ToStatus(status);
  messages.push_back(Message("assistant", answer.text));
  messages_ = std::move(messages);
  return answer;
}

bool ChatSession::Stop() {
  const std::lock_guard lock(mutex_);
  if (call_ == nullptr) return false;
  stopped_ = true;
  call_->TryCancel();
  return true;
}

}  // namespace sparsekv
