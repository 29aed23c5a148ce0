// sparsekv-coordinator: the front door. Wires the parts together; started by `sparsekv serve`.
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <future>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/gate.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/version.h"
#include "coordinator/chat/model_templates.h"
#include "coordinator/drain.h"
#include "coordinator/engine.h"
#include "coordinator/generation_service.h"
#include "coordinator/grpc_server.h"
#include "coordinator/http_server.h"
#include "coordinator/metrics.h"
#include "coordinator/tokenizer_codec.h"

namespace sparsekv {
namespace {

constexpr std::chrono::seconds kDrainLimit{30};
constexpr int kShutdownGraceMs = 1000;  // for clients to take what is written
constexpr size_t kTokenizeThreads = 2;

struct Options {
  std::string model_dir, store_socket;
  std::vector<std::string> worker_sockets;
  int grpc_listen_fd = -1;
  int http_listen_fd = -1;
  int ready_fd = -1;
  int parent = 0;
  uint32_t default_budget_denominator = kDefaultBudgetDenominator;
  PlacementPolicy placement = PlacementPolicy::kAuto;
  PrefetchOptions prefetch;
};

void TellReady(int fd) {
  if (fd < 0) return;
  constexpr std::string_view kLine = "ready\n";
  if (write(fd, kLine.data(), kLine.size()) != static_cast<ssize_t>(kLine.size())) {
    spdlog::warn("nobody reads the ready descriptor");
  }
  close(fd);
}

HttpServer::Routes Routes(Engine* engine, const Metrics* metrics) {
  return {{"/metrics",
           [=] {
             engine->UpdateGauges();
             return HttpReply{.content_type = "text/plain; version=0.0.4; charset=utf-8",
                              .body = metrics->Serialize()};
           }},
          {"/healthz", [] { return HttpReply{.body = "ok\n"}; }},
          {"/readyz", [=] {
             const absl::Status status = engine->Readiness();
             if (status.ok()) return HttpReply{.body = "ready\n"};
             return HttpReply{.status = 503, .body = absl::StrCat(status.message(), "\n")};
           }}};
}

// The pid comes from the worker's own hello, over a socket that only our user may open.
void KillWorker(int64_t pid) {
  if (pid > 1) kill(static_cast<pid_t>(pid), SIGKILL);
}

absl::Status CheckDescriptors(const Options& options) {
  const auto check = [](const char* name, int fd) {
    absl::Status status = CheckListening(fd);
    if (!status.ok()) return absl::InvalidArgumentError(absl::StrCat(name, ": ", status.message()));
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    return status;
  };
  absl::Status status = check("--grpc-listen-fd", options.grpc_listen_fd);
  if (status.ok() && options.http_listen_fd != -1) {
    status = check("--http-listen-fd", options.http_listen_fd);
  }
  if (!status.ok()) return status;
  if (options.ready_fd >= 0 && fcntl(options.ready_fd, F_SETFD, FD_CLOEXEC) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--ready-fd: ", options.ready_fd, " is not open"));
  }
  return absl::OkStatus();
}

// The parts, in the order in which they depend on each other; destroyed in the other one, when no
// thread runs any more.
absl::Status Run(const Options& options) {
  if (absl::Status status = CheckDescriptors(options); !status.ok()) return status;
  auto tokenizer = Tokenizer::Load(options.model_dir);
  if (!tokenizer.ok()) return tokenizer.status();
  const TokenizerCodec codec(*std::move(tokenizer));
  const auto templates = chat::ModelTemplates::Load(options.model_dir);
  if (!templates.status().ok())
    spdlog::info("no chat: {}", std::string(templates.status().message()));

  boost::asio::io_context io(1);
  auto work = boost::asio::make_work_guard(io);
  boost::asio::thread_pool pool(kTokenizeThreads);
  Gate gate;
  Metrics metrics(static_cast<uint32_t>(options.worker_sockets.size()));
  std::vector<std::shared_ptr<WorkerLink>> workers;
  for (const std::string& path : options.worker_sockets) {
    workers.push_back(
        MakeWorkerLink(io.get_executor(), &gate, static_cast<uint32_t>(workers.size()), path));
  }
  GrpcServer* health = nullptr;  // the server, once there is one
  Engine engine({.strand = io.get_executor(),
                 .pool = pool.get_executor(),
                 .codec = &codec,
                 .metrics = &metrics,
                 .store = MakeStoreLink(io.get_executor(), &gate, options.store_socket),
                 .workers = std::move(workers),
                 .default_budget_denominator = options.default_budget_denominator,
                 .placement = options.placement,
                 .prefetch = options.prefetch,
                 .on_ready = [&] { TellReady(options.ready_fd); },
                 .on_serving = [&](bool on) { health->SetServing(on); },
                 .kill_worker = KillWorker});
  const auto service =
      MakeGenerationService({io.get_executor(), pool.get_executor(), &engine, &codec, &templates});
  auto server = GrpcServer::Make(io.get_executor(), options.grpc_listen_fd, service.get());
  if (!server.ok()) return server.status();
  health = server->get();
  std::unique_ptr<HttpServer> http;
  if (options.http_listen_fd >= 0) {
    http = std::make_unique<HttpServer>(io.get_executor(), options.http_listen_fd,
                                        Routes(&engine, &metrics));
    http->Start();
  }
  std::promise<void> drained;
  Drain drain(io.get_executor(), &engine, kDrainLimit, [&] { drained.set_value(); });
  engine.Start();
  (*server)->Start();
  std::thread strand([&] { io.run(); });

  drained.get_future().wait();
  std::promise<void> stopped;
  boost::asio::post(io, [&] {
    (*server)->StopAccepting();
    if (http) http->Stop();
    engine.Stop();
    stopped.set_value();
  });
  stopped.get_future().wait();
  (*server)->Shutdown(kShutdownGraceMs);  // calls finish on the strand and in the pool
  gate.CloseAndWait();
  pool.join();
  io.stop();
  strand.join();
  spdlog::info("stopped");
  return absl::OkStatus();
}

// Names on the command line, and what they stand for.
template <typename T>
void AddChoice(CLI::App& app, const std::string& name, T& value, std::map<std::string, T> choices,
               const std::string& help) {
  app.add_option_function<std::string>(
         name, [&value, choices](const std::string& chosen) { value = choices.at(chosen); }, help)
      ->check(CLI::IsMember(choices));
}

void AddOffloadOptions(CLI::App& app, Options& options) {
  AddChoice<PlacementPolicy>(app, "--placement", options.placement,
                             {{"auto", PlacementPolicy::kAuto},
                              {"resident", PlacementPolicy::kResident},
                              {"offload", PlacementPolicy::kOffload}},
                             "where token rows are read from: the device (resident), the segment "
                             "(offload), or the device while there is room (auto, the default)");
  AddChoice<bool>(app, "--predict", options.prefetch.predict, {{"on", true}, {"off", false}},
                  "prefetch the rows that the layer before predicts (default on)");
  AddChoice<bool>(
      app, "--correction", options.prefetch.correct, {{"on", true}, {"none", false}},
      "none: a predicted layer attends what was predicted, as in the paper (default on)");
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app{"sparsekv-coordinator: the front door (started by `sparsekv serve`)"};
  app.set_version_flag("--version", kVersion);
  app.add_option("--model", options.model_dir, "checkpoint directory")->required();
  app.add_option("--grpc-listen-fd", options.grpc_listen_fd, "listening TCP socket, inherited")
      ->required();
  app.add_option("--http-listen-fd", options.http_listen_fd, "the same for HTTP; -1 = off");
  app.add_option("--store-socket", options.store_socket, "Unix socket of KvStore")->required();
  app.add_option("--worker-socket", options.worker_sockets,
                 "Unix socket of Worker.Run; the n-th is the worker of pool n")
      ->required()
      ->allow_extra_args(false);
  app.add_option("--ready-fd", options.ready_fd, "gets the line \"ready\" when jobs can be taken");
  app.add_option("--default-budget-denominator", options.default_budget_denominator,
                 "N of the budget 1/N for requests that name none")
      ->check(CLI::Range(1u, 1u << 20));
  AddOffloadOptions(app, options);
  app.add_option("--parent-pid", options.parent, "exit when this process is gone");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  InitLog("sparsekv-coordinator");
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (options.parent != 0 && getppid() != options.parent) return 0;  // it died before we asked
  signal(SIGPIPE, SIG_IGN);

  const absl::Status status = Run(options);
  if (status.ok()) return 0;
  PrintError("sparsekv-coordinator", std::string(status.message()));
  return 1;
}

}  // namespace
}  // namespace sparsekv

int main(int argc, char** argv) { return sparsekv::Main(argc, argv); }
