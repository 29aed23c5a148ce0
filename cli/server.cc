#include "cli/server.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <concepts>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/shared_memory.h"
#include "cli/backend_choice.h"
#include "cli/child_process.h"
#include "cli/listen_socket.h"
#include "cli/state_dir.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "gpu_worker/device.h"
#include "gpu_worker/layerwise_prefill.h"
#include "kv_store/gather_server.h"
#include "kv_store/memory_check.h"
#include "kv_store/segment_layout.h"

namespace sparsekv {

namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds kDrain{32};  // the coordinator's own 30 s and a little
constexpr std::chrono::seconds kStop{5};

// What every child is started with.
struct ServerPlan {
  RowLayout layout;
  uint64_t fingerprint = 0;
  BackendChoice backend;
};

std::string ProgramPath(const char* name) {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path() / name;
}

// Everything that can be wrong with a checkpoint or with memory is found here, before a port is
// taken or a process started.
absl::StatusOr<ServerPlan> MakePlan(const ServeOptions& options) {
  auto files = ModelFiles::Load(options.model_dir, options.channels_file, Weights::Use::kDescribe);
  if (!files.ok()) return files.status();
  auto tokenizer = Tokenizer::Load(options.model_dir);
  if (!tokenizer.ok()) return tokenizer.status();

  ServerPlan plan;
  plan.fingerprint = files->weights->fingerprint();
  auto backend = ChooseBackend(options, *files, ProgramPath("sparsekv-gpu-worker"));
  if (!backend.ok()) return backend.status();
  plan.backend = *std::move(backend);
  const bool cuda = plan.backend.cuda;
  if (options.mirror_rows && !cuda) {
    return absl::InvalidArgumentError("--mirror-rows: needs --backend cuda");
  }
  const RowMode rows = options.row_mode(cuda);

  const auto available = kv_store::AvailableMemory();
  if (!available.ok()) return available.status();
  // On the cpu the device's memory is the host's too, and each worker packs integer weights.
  const QuantizedWeights* quantized = files->weights->quantized();
  const uint64_t worker =
      plan.backend.memory.total_bytes() + (quantized != nullptr ? quantized->packed_bytes() : 0);
  const uint64_t devices = cuda ? 0 : options.workers * worker;
  const uint64_t left = *available > devices ? *available - devices : 0;
  const uint64_t copies = options.mirror_rows && cuda ? 2 : 1;  // of every row
  const uint64_t wanted =
      options.host_memory_bytes ? options.host_memory_bytes : left / (1 + copies);
  if (wanted > *available) {
    return absl::ResourceExhaustedError(
        absl::StrCat("--host-memory: ", wanted, " bytes asked, ", *available, " are available"));
  }
  // More than a full batch of full contexts would never be used.
  const uint64_t context_blocks = (files->config.max_context + kBlockTokens - 1) / kBlockTokens;
  const uint64_t bytes_per_block = files->Layout(1).bytes_per_block();
  const uint64_t blocks =
      std::min(wanted / options.workers / bytes_per_block, context_blocks * options.max_batch);
  if (blocks == 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("--host-memory: ", wanted, " bytes do not hold a block of ", kBlockTokens,
                     " tokens (", bytes_per_block, " bytes) for each worker"));
  }
  plan.layout = files->Layout(static_cast<uint32_t>(blocks));
  // With stamps and the block table, and what a long prompt keeps in host memory.
  const size_t gather = options.fetch == "gather" ? kv_store::GatherServer::BytesPerWorker(
                                                        plan.layout, kv_store::kDefaultStagingBytes)
                                                  : 0;
  const size_t prompt = rows.in_place || cuda
                            ? 0
                            : LayerwisePrefill::HostBytes(files->config, files->config.max_context);
  const size_t mirror = (copies - 1) * plan.layout.pool_bytes();
  const size_t host =
      options.workers * (kv_store::RowsBytes(plan.layout) + mirror + gather + prompt) + devices +
      kv_store::MetaBytes(options.workers, plan.layout.blocks);
  if (absl::Status status = kv_store::CheckMemory(host, *available); !status.ok()) return status;
  return plan;
}

// The argv of a child.
class Arguments {
 public:
  explicit Arguments(const char* program) : list_{ProgramPath(program)} {
    Add("--parent-pid", getpid());
  }
  Arguments& Add(const char* option, const std::string& value) {
    list_.insert(list_.end(), {option, value});
    return *this;
  }
  Arguments& Add(const char* option, std::integral auto value) {
    return Add(option, std::to_string(value));
  }
  Arguments& AddFlag(const char* option) {
    list_.push_back(option);
    return *this;
  }
  const std::vector<std::string>& list() const { return list_; }

 private:
  std::vector<std::string> list_;
};

class Server {
 public:
  explicit Server(const ServeOptions& options) : options_(options) {}

  absl::Status Run();

 private:
  absl::Status Prepare();
  absl::Status MakeSegment();
  void DescribeChildren();
  std::unique_ptr<ChildProcess> DescribeStore();
  std::unique_ptr<ChildProcess> DescribeWorker(uint32_t index);
  std::unique_ptr<ChildProcess> DescribeCoordinator();
  std::string WorkerSocket(uint32_t index) {
    return state_->Socket(absl::StrCat("worker-", index));
  }
  absl::Status StartAll();
  absl::Status WaitReady();
  absl::Status Supervise();
  void StopAll();
  // Waits for signals at most until `deadline`; reaps children. True when a stop was asked for.
  bool Wait(Clock::time_point deadline);
  absl::Status Reap();
  void StopGroup(std::vector<ChildProcess*> group, std::chrono::seconds patience);

  const ServeOptions& options_;
  ServerPlan plan_;
  std::unique_ptr<StateDir> state_;
  ListenSocket grpc_, http_;
  UniqueFd meta_;
  std::vector<UniqueFd> rows_;
  UniqueFd signals_, ready_read_, ready_write_;
  std::vector<std::unique_ptr<ChildProcess>> children_;  // store, workers..., coordinator
  bool ready_ = false;
  bool stopping_ = false;
  absl::Status failure_;
};

absl::Status Server::Run() {
  absl::Status status = Prepare();
  if (status.ok()) status = StartAll();
  if (status.ok()) status = WaitReady();
  if (status.ok()) status = Supervise();
  StopAll();
  return status;
}

absl::Status Server::Prepare() {
  auto plan = MakePlan(options_);
  if (!plan.ok()) return plan.status();
  plan_ = *plan;
  auto grpc = Listen("--grpc", options_.grpc);
  if (!grpc.ok()) return grpc.status();
  grpc_ = *grpc;
  if (options_.http != "off") {
    auto http = Listen("--http", options_.http);
    if (!http.ok()) return http.status();
    http_ = *http;
  }
  auto state = StateDir::Open(options_.state_dir);
  if (!state.ok()) return state.status();
  state_ = *std::move(state);
  if (absl::Status status = MakeSegment(); !status.ok()) return status;

  sigset_t mask;
  sigemptyset(&mask);
  for (int signal : {SIGTERM, SIGINT, SIGHUP, SIGCHLD}) sigaddset(&mask, signal);
  sigprocmask(SIG_BLOCK, &mask, nullptr);
  signal(SIGPIPE, SIG_IGN);
  signals_ = UniqueFd(signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK));
  int pipe_fds[2];
  CHECK_EQ(pipe2(pipe_fds, O_CLOEXEC), 0);
  ready_read_ = UniqueFd(pipe_fds[0]);
  ready_write_ = UniqueFd(pipe_fds[1]);
  DescribeChildren();
  return absl::OkStatus();
}

// The parent holds the memfds, so that the rows outlive every child.
absl::Status Server::MakeSegment() {
  auto meta = CreateMemfd("sparsekv-meta");
  if (!meta.ok()) return meta.status();
  meta_ = *std::move(meta);
  for (uint32_t worker = 0; worker < options_.workers; ++worker) {
    auto rows = CreateMemfd("sparsekv-rows");
    if (!rows.ok()) return rows.status();
    rows_.push_back(*std::move(rows));
  }
  return absl::OkStatus();
}

void Server::DescribeChildren() {
  children_.push_back(DescribeStore());
  for (uint32_t i = 0; i < options_.workers; ++i) children_.push_back(DescribeWorker(i));
  children_.push_back(DescribeCoordinator());
}

std::unique_ptr<ChildProcess> Server::DescribeStore() {
  Arguments arguments("sparsekv-kv-store");
  arguments.Add("--grpc-socket", state_->Socket("store"))
      .Add("--attach-socket", state_->Socket("attach"))
      .Add("--layers", plan_.layout.layers)
      .Add("--kv-heads", plan_.layout.kv_heads)
      .Add("--head-dim", plan_.layout.head_dim)
      .Add("--row-dtype", std::string(Name(plan_.layout.dtype)))
      .Add("--blocks", plan_.layout.blocks)
      .Add("--fingerprint", HexId(plan_.fingerprint))
      .Add("--gather-threads", options_.fetch == "gather" ? 1 : 0)
      .Add("--meta-fd", meta_.get());
  std::vector<int> fds = {meta_.get()};
  for (const UniqueFd& rows : rows_) {
    arguments.Add("--rows-fd", rows.get());
    fds.push_back(rows.get());
  }
  for (int node : plan_.backend.nodes) {
    arguments.AddFlag(absl::StrCat("--rows-node=", node).c_str());
  }
  return std::make_unique<ChildProcess>("store", arguments.list(), fds);
}

std::unique_ptr<ChildProcess> Server::DescribeWorker(uint32_t index) {
  Arguments arguments("sparsekv-gpu-worker");
  arguments.Add("--model", options_.model_dir)
      .Add("--socket", WorkerSocket(index))
      .Add("--attach-socket", state_->Socket("attach"))
      .Add("--pool", index)
      .Add("--device-memory", plan_.backend.device_bytes)
      .Add("--max-batch", options_.max_batch)
      .Add("--threads", options_.threads);
  if (!options_.channels_file.empty()) arguments.Add("--channels", options_.channels_file);
  const bool cuda = plan_.backend.cuda;
  if (cuda) {
    arguments.Add("--backend", "cuda").Add("--device", plan_.backend.devices[index]);
    if (options_.no_graphs) arguments.AddFlag("--no-graphs");
    if (options_.no_early_launch) arguments.AddFlag("--no-early-launch");
    if (options_.exact_prompts) arguments.AddFlag("--exact-prompts");
    if (options_.mirror_rows) arguments.AddFlag("--mirror-rows");
  }
  if (const RowMode rows = options_.row_mode(cuda); !rows.in_place) {
    arguments.Add("--hot-rows", rows.hot_rows)
        .Add("--fetch", options_.fetch)
        .Add("--link", options_.link)
        .AddFlag("--rows-on-device");
    if (rows.predict) arguments.AddFlag("--predict");
  }
  return std::make_unique<ChildProcess>(absl::StrCat("worker ", index), arguments.list(),
                                        std::vector<int>{});
}

// The ready pipe comes last: only the first coordinator gets it (StartAll).
std::unique_ptr<ChildProcess> Server::DescribeCoordinator() {
  Arguments arguments("sparsekv-coordinator");
  arguments.Add("--model", options_.model_dir)
      .Add("--grpc-listen-fd", grpc_.fd)
      .Add("--http-listen-fd", http_.fd)
      .Add("--placement", options_.placement)
      .Add("--predict", options_.predict)
      .Add("--correction", options_.correction)
      .Add("--store-socket", state_->Socket("store"));
  for (uint32_t i = 0; i < options_.workers; ++i) arguments.Add("--worker-socket", WorkerSocket(i));
  arguments.Add("--ready-fd", ready_write_.get());
  std::vector<int> fds = {grpc_.fd, ready_write_.get()};
  if (http_.fd >= 0) fds.push_back(http_.fd);
  return std::make_unique<ChildProcess>("coordinator", arguments.list(), fds);
}

absl::Status Server::StartAll() {
  for (auto& child : children_) {
    if (absl::Status status = child->Start(); !status.ok()) return status;
  }
  children_.back()->DropLastArguments(2, ready_write_.get());
  ready_write_ = UniqueFd();  // the coordinator has the only write end now
  return absl::OkStatus();
}

// Before the server is ready a child that ends is a failure to start, and it has said why on
// stderr.
absl::Status Server::WaitReady() {
  while (!stopping_) {
    pollfd polls[2] = {{ready_read_.get(), POLLIN, 0}, {signals_.get(), POLLIN, 0}};
    poll(polls, 2, -1);
    if (polls[1].revents != 0) Wait(Clock::now());
    if (!failure_.ok()) return failure_;
    if (polls[0].revents & POLLIN) {
      std::printf("ready grpc=%s http=%s\n", grpc_.address.c_str(),
                  http_.fd >= 0 ? http_.address.c_str() : "-");
      std::fflush(stdout);
      ready_ = true;
      return absl::OkStatus();
    }
    if (polls[0].revents & POLLHUP) usleep(1000);  // it died: its SIGCHLD is on the way
  }
  return absl::OkStatus();
}

absl::Status Server::Supervise() {
  while (!stopping_) {
    Clock::time_point next = Clock::time_point::max();
    for (auto& child : children_) {
      if (child->running()) continue;
      if (child->restart_at() <= Clock::now()) {
        if (absl::Status status = child->Start(); !status.ok()) return status;
        spdlog::info("{} started again, pid {}", child->name(), child->pid());
      } else {
        next = std::min(next, child->restart_at());
      }
    }
    Wait(next);
    if (!failure_.ok()) return failure_;
  }
  return absl::OkStatus();
}

bool Server::Wait(Clock::time_point deadline) {
  int timeout_ms = -1;
  if (deadline != Clock::time_point::max()) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
    timeout_ms = static_cast<int>(std::max<int64_t>(left.count(), 0));
  }
  pollfd waiting = {signals_.get(), POLLIN, 0};
  poll(&waiting, 1, timeout_ms);
  signalfd_siginfo info;
  while (read(signals_.get(), &info, sizeof info) == sizeof info) {
    if (info.ssi_signo == SIGCHLD) continue;
    // A second stop signal means at once: the coordinator understands it so too.
    if (stopping_ && !children_.empty()) children_.back()->Signal(SIGTERM);
    stopping_ = true;
  }
  const absl::Status status = Reap();
  if (failure_.ok()) failure_ = status;
  return stopping_;
}

absl::Status Server::Reap() {
  absl::Status result;
  int wait_status = 0;
  for (pid_t pid; (pid = waitpid(-1, &wait_status, WNOHANG)) > 0;) {
    for (auto& child : children_) {
      if (child->pid() != pid) continue;
      const bool again = child->OnExit();
      if (stopping_) continue;
      const std::string how = DescribeExit(wait_status);
      if (!ready_) {
        result = absl::UnavailableError(
            absl::StrCat("the ", child->name(), " did not start (", how, ")"));
      } else if (!again) {
        result =
            absl::UnavailableError(absl::StrCat("the ", child->name(), " keeps dying (", how, ")"));
      }
      spdlog::warn("{} pid {} ended: {}", child->name(), pid, how);
    }
  }
  return result;
}

void Server::StopGroup(std::vector<ChildProcess*> group, std::chrono::seconds patience) {
  for (ChildProcess* child : group) child->Signal(SIGTERM);
  auto running = [&] { return std::ranges::any_of(group, &ChildProcess::running); };
  const auto deadline = Clock::now() + patience;
  while (running() && Clock::now() < deadline) Wait(deadline);
  for (ChildProcess* child : group) {
    if (!child->running()) continue;
    spdlog::error("{} does not stop: killed", child->name());
    child->Signal(SIGKILL);
    waitpid(child->pid(), nullptr, 0);
    child->OnExit();
  }
}

// The coordinator drains first; workers and store serve it until it is done.
void Server::StopAll() {
  stopping_ = true;
  if (children_.empty()) return;
  StopGroup({children_.back().get()}, ready_ ? kDrain : kStop);
  std::vector<ChildProcess*> rest;
  for (size_t i = 0; i + 1 < children_.size(); ++i) rest.push_back(children_[i].get());
  StopGroup(rest, kStop);
}

}  // namespace

absl::Status Serve(const ServeOptions& options) { return Server(options).Run(); }

}  // namespace sparsekv
