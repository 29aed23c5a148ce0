// `sparsekv generate`: one job over gRPC, streamed to stdout or as one JSON object.
#include <grpcpp/grpcpp.h>
#include <signal.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "cli/commands.h"
#include "cli/sampling_options.h"
#include "coordinator/tokenizer/utf8.h"
#include "sparsekv/v1/generation.grpc.pb.h"

namespace sparsekv {

namespace {

struct GenerateOptions {
  std::string grpc = "127.0.0.1:50051";
  std::string prompt, prompt_file, token_ids, token_ids_file;
  SamplingOptions sampling;
  double deadline_s = 0;
  bool ignore_eos = false;
  bool json = false;
  CLI::Option *prompt_set = nullptr, *ids_set = nullptr;
};

absl::Status SetText(const std::string& source, std::string text, v1::GenerateRequest* request) {
  // What the API carries as a string must be UTF-8, and gRPC's own complaint names nothing.
  const size_t valid = tokenizer::ValidUtf8Prefix(text);
  if (valid < text.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        source, ": byte ", valid, " is not UTF-8; other bytes can be sent as --token-ids"));
  }
  request->set_text(std::move(text));
  return absl::OkStatus();
}

absl::Status SetPrompt(const GenerateOptions& o, v1::GenerateRequest* request) {
  if (!o.prompt_file.empty()) {
    auto text = ReadInput(o.prompt_file);
    if (!text.ok()) return text.status();
    return SetText(o.prompt_file, *std::move(text), request);
  }
  if (o.prompt_set->count() > 0) return SetText("--prompt", o.prompt, request);
  auto ids = o.token_ids_file.empty() ? ParseTokenIds(o.token_ids) : ReadTokenIds(o.token_ids_file);
  if (!ids.ok()) return ids.status();
  request->mutable_token_ids()->mutable_ids()->Add(ids->begin(), ids->end());
  return absl::OkStatus();
}

absl::StatusOr<v1::GenerateRequest> MakeRequest(const GenerateOptions& o) {
  v1::GenerateRequest request;
  if (absl::Status status = SetPrompt(o, &request); !status.ok()) return status;
  if (absl::Status status = o.sampling.Apply(&request); !status.ok()) return status;
  request.set_ignore_eos(o.ignore_eos);
  return request;
}

const char* Name(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    case v1::FINISH_REASON_CANCELLED:
      return "cancelled";
    case v1::FINISH_REASON_DEADLINE:
      return "deadline";
    default:
      return "error";
  }
}

nlohmann::ordered_json ToJson(const std::string& text, const std::vector<uint32_t>& ids,
                              const v1::GenerateResponse& last) {
  const auto& sparsity = last.sparsity();
  const auto& timings = last.timings();
  return {{"text", text},
          {"token_ids", ids},
          {"finish_reason", Name(last.finish_reason())},
          {"usage",
           {{"prompt_tokens", last.usage().prompt_tokens()},
            {"completion_tokens", last.usage().completion_tokens()},
            {"cached_tokens", last.usage().cached_tokens()}}},
          {"sparsity",
           {{"attention",
             sparsity.attention() == v1::ATTENTION_DOUBLE_SPARSITY ? "double-sparsity" : "dense"},
            {"budget_effective", sparsity.budget_effective()},
            {"rows_selected", sparsity.rows_selected()},
            {"rows_fetched", sparsity.rows_fetched()},
            {"hits", sparsity.hits()},
            {"misses", sparsity.misses()},
            {"prefetch_useful", sparsity.prefetch_useful()},
            {"device_kv_bytes", sparsity.device_kv_bytes()},
            {"host_kv_bytes", sparsity.host_kv_bytes()},
            {"attention_recall", sparsity.attention_recall()},
            {"recall_samples", sparsity.recall_samples()},
            {"recall_target", sparsity.recall_target()},
            {"dense_layers", sparsity.dense_layers()}}},
          {"timings",
           {{"queue_s", timings.queue_s()},
            {"prefill_s", timings.prefill_s()},
            {"ttft_s", timings.ttft_s()},
            {"decode_s", timings.decode_s()},
            {"stall_s", timings.stall_s()}}}};
}

// The call in flight, so that Ctrl-C cancels it at the server instead of leaving it running.
std::atomic<grpc::ClientContext*> call_in_flight{nullptr};

void CancelOnSignal() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::thread([signals] {
    int signal = 0;
    sigwait(&signals, &signal);
    if (grpc::ClientContext* call = call_in_flight.load()) call->TryCancel();
  }).detach();
}

// What has come of a completion so far.
struct Completion {
  std::string text;
  std::vector<uint32_t> ids;
  v1::GenerateResponse last;
};

grpc::Status Receive(const GenerateOptions& o, const v1::GenerateRequest& request,
                     Completion* completion) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  auto stub = v1::Generation::NewStub(
      grpc::CreateCustomChannel(o.grpc, grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  if (o.deadline_s > 0) {
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::microseconds(std::llround(o.deadline_s * 1e6)));
  }
  call_in_flight = &context;
  auto reader = stub->Generate(&context, request);
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
    completion->ids.insert(completion->ids.end(), response.token_ids().begin(),
                           response.token_ids().end());
    completion->text += response.text();
    if (!o.json) {
      std::fwrite(response.text().data(), 1, response.text().size(), stdout);
      std::fflush(stdout);
    }
    completion->last = response;
  }
  grpc::Status status = reader->Finish();
  call_in_flight = nullptr;
  return status;
}

v1::FinishReason ReasonOf(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::CANCELLED:
      return v1::FINISH_REASON_CANCELLED;
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return v1::FINISH_REASON_DEADLINE;
    default:
      return v1::FINISH_REASON_ERROR;
  }
}

absl::Status RunGenerate(const GenerateOptions& o) {
  auto request = MakeRequest(o);
  if (!request.ok()) return request.status();
  CancelOnSignal();
  Completion completion;
  const grpc::Status status = Receive(o, *request, &completion);
  if (!status.ok()) completion.last.set_finish_reason(ReasonOf(status.error_code()));
  if (o.json) {
    std::cout << ToJson(completion.text, completion.ids, completion.last)
                     .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
              << std::endl;
  } else if (status.ok() || !completion.text.empty()) {
    std::fputc('\n', stdout);
  }
  if (status.ok()) return absl::OkStatus();
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  return absl::Status(code, absl::StrCat(o.grpc, ": ", absl::StatusCodeToString(code), ": ",
                                         status.error_message()));
}

}  // namespace

void AddGenerate(CLI::App& app, Command* command) {
  CLI::App* sub = app.add_subcommand("generate", "one job: a prompt in, tokens out");
  auto o = std::make_shared<GenerateOptions>();
  sub->add_option("--grpc", o->grpc, "the server")->capture_default_str();
  auto* group = sub->add_option_group("prompt", "exactly one of");
  o->prompt_set = group->add_option("--prompt", o->prompt, "text, byte for byte");
  group->add_option("--prompt-file", o->prompt_file, "text from a file, - = stdin");
  o->ids_set = group->add_option("--token-ids", o->token_ids, "1,2,3: nothing is added");
  group->add_option("--token-ids-file", o->token_ids_file, "the same from a file");
  group->require_option(1);
  o->sampling.AddTo(sub);
  sub->add_option("--deadline", o->deadline_s, "seconds until the server gives up");
  sub->add_flag("--ignore-eos", o->ignore_eos, "go on to --max-tokens");
  sub->add_flag("--json", o->json, "one object with ids, usage, sparsity and timings");
  sub->callback([=] { *command = [=] { return RunGenerate(*o); }; });
}

}  // namespace sparsekv
