// sparsekv-gpu-worker: one rank. Loads the checkpoint, attaches to the store's segment, serves
// Worker.Run, and runs the step loop on the main thread.
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <string_view>
#include <thread>

#include "base/ids.h"
#include "base/log.h"
#include "base/version.h"
#include "gpu_worker/backend_limits.h"
#include "gpu_worker/device.h"
#include "gpu_worker/step_loop.h"
#include "gpu_worker/worker_service.h"
#include "kv_store/client.h"

namespace sparsekv {
namespace {

constexpr size_t kInboxCommands = 1024;

struct Options {
  std::string model_dir, socket, attach_socket, channels_file;
  uint32_t pool = 0;
  uint64_t device_bytes = 0;
  uint32_t max_batch = 0;
  unsigned threads = 0;
  std::string backend = "cpu";
  int device = 0;
  bool graphs = true;
  bool early_launch = true;
  bool exact_prompts = false;
  bool mirror_rows = false;
  RowMode rows;
  std::string link = "off";
  std::string fetch = "direct";
};

// The store may be populating a large segment, or be down for a moment: UNAVAILABLE is waited out.
// The parent watches both.
absl::StatusOr<std::unique_ptr<kv_store::SegmentClient>> AttachSegment(const Options& options,
                                                                       uint64_t boot_id) {
  while (true) {
    auto segment = kv_store::SegmentClient::Attach(options.attach_socket, options.pool, boot_id);
    if (segment.ok() || !absl::IsUnavailable(segment.status())) return segment;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

// Beside the sockets of this server's workers.
std::string RegistrationLock(const Options& options) {
  return std::filesystem::path(options.socket).parent_path() / "registration.lock";
}

absl::Status CheckSegment(const kv_store::SegmentClient& segment, const ModelFiles& files) {
  if (segment.fingerprint() != files.weights->fingerprint()) {
    return absl::FailedPreconditionError("segment: made for model " + HexId(segment.fingerprint()) +
                                         ", this one is " + HexId(files.weights->fingerprint()));
  }
  if (segment.layout() != files.Layout(segment.layout().blocks)) {
    return absl::FailedPreconditionError("segment: its row layout is not the model's");
  }
  return absl::OkStatus();
}

v1::WorkerHello MakeHello(const Options& options, const ModelFiles& files, const Device& device,
                          const kv_store::SegmentClient& segment) {
  v1::WorkerHello hello;
  const ModelConfig& config = files.config;
  auto* model = hello.mutable_model();
  model->set_model(std::filesystem::canonical(options.model_dir).filename());
  model->set_architecture(config.architecture());
  model->set_vocab_size(config.vocab_size);
  model->set_context(config.max_context);
  model->set_layers(config.layers);
  model->set_heads(config.heads);
  model->set_kv_heads(config.kv_heads);
  model->set_head_dim(config.head_dim);
  model->set_row_dtype(std::string(Name(segment.layout().dtype)));
  model->set_fingerprint(HexId(files.weights->fingerprint()));
  model->set_backend(std::string(device.backend->name()));
  model->set_double_sparsity(files.channels.has_value());
  model->set_recall_targets(files.channels && WhyNoRecallTarget(*device.backend).empty());
  model->set_label_channels(files.channels ? files.channels->channels : 0);
  model->set_default_budget_denominator(kDefaultBudgetDenominator);
  model->set_host_row_bytes(segment.layout().pool_bytes());
  model->set_device_kv_bytes(size_t{device.plan.label_pages} * device.labels->page_bytes());
  model->set_token_capacity(uint64_t{segment.layout().blocks} * kBlockTokens);
  model->set_version(kVersion);
  for (uint32_t id : config.eos_ids) hello.add_eos_token_ids(id);
  hello.set_max_batch(device.plan.max_batch);
  hello.set_label_pages(device.plan.label_pages);
  hello.set_device_memory_bytes(device.arena->used_bytes());
  hello.set_pool(options.pool);
  hello.set_device_row_blocks(device.plan.row_blocks);
  hello.set_hot_rows(options.rows.hot_rows);
  for (const Device::MemoryUse& use : device.Memory()) {
    auto* memory = hello.add_device_memory();
    memory->set_kind(use.kind);
    memory->set_bytes(use.bytes);
    memory->set_used_bytes(use.used_bytes);
  }
  hello.set_pid(getpid());
  return hello;
}

void LogPlan(const Device& device) {
  spdlog::info("backend {}; device memory {} of {} bytes", device.backend->name(),
               device.arena->used_bytes(), device.arena->budget_bytes());
  for (const auto& [kind, bytes] : device.arena->bytes_by_kind()) {
    spdlog::info("  {} {}", kind, bytes);
  }
}

absl::Status RunWorker(const Options& options) {
  const auto link = LinkSpec::Parse(options.link);
  if (!link.ok()) return link.status();
  auto files = ModelFiles::Load(options.model_dir, options.channels_file);
  if (!files.ok()) return files.status();
  const uint64_t boot_id = NewBootId();
  auto segment = AttachSegment(options, boot_id);
  if (!segment.ok()) return segment.status();
  if (absl::Status status = CheckSegment(**segment, *files); !status.ok()) return status;
  // From here on there are threads, which inherit this, and something to leave in order. Until here
  // a stop signal simply ends the process.
  sigset_t stop_signals;
  sigemptyset(&stop_signals);
  sigaddset(&stop_signals, SIGTERM);
  sigaddset(&stop_signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &stop_signals, nullptr);
  auto device =
      Device::Make(*files, {.device_bytes = options.device_bytes,
                            .max_batch = options.max_batch,
                            .prefill_unit_tokens = PrefillUnitTokens(options.backend == "cuda"),
                            .threads = options.threads,
                            .backend = BackendFor(options.backend, *files),
                            .device = options.device,
                            .graphs = options.graphs,
                            .early_launch = options.early_launch,
                            .exact_prompts = options.exact_prompts,
                            .mirror_rows = options.mirror_rows,
                            .share_lock_file = RegistrationLock(options),
                            .row_layout = (*segment)->layout(),
                            .row_pool = (*segment)->rows(),
                            .rows = options.rows,
                            .link = *link,
                            .gather = options.fetch == "gather" ? (*segment)->gather() : nullptr});
  if (!device.ok()) return device.status();
  LogPlan(*device);

  WorkerInbox inbox(kInboxCommands);
  auto service = WorkerService::Serve(options.socket, &inbox);
  if (!service.ok()) return service.status();
  std::thread stopper([&] {
    int signal = 0;
    sigwait(&stop_signals, &signal);
    inbox.TryPush(StopRequested{});
  });
  StepLoop loop({.device = &*device,
                 .segment = segment->get(),
                 .inbox = &inbox,
                 .sink = service->get(),
                 .hello = MakeHello(options, *files, *device, **segment),
                 .boot_id = boot_id});
  spdlog::info("worker {} of model {} is up", HexId(boot_id), options.model_dir);
  const absl::Status status = loop.Run();
  if (!status.ok()) kill(getpid(), SIGTERM);  // the loop ended by itself: release the stopper
  stopper.join();
  (*service)->Shutdown();
  unlink(options.socket.c_str());
  return status;
}

// For the parent, which must not touch CUDA itself (cli/device_probe.h).
int Probe() {
  const std::vector<CudaDevice> devices = CudaDevices();
  for (const CudaDevice& device : devices) {
    std::printf("device %d %zu %d\n", device.ordinal, device.free_bytes, device.node);
  }
  if (devices.empty()) std::printf("none %s\n", WhyNoCuda().c_str());
  return 0;
}

int Main(int argc, char** argv) {
  Options options;
  int parent = 0;
  bool rows_on_device = false;
  CLI::App app{"sparsekv-gpu-worker: one rank of a sparsekv server (started by `sparsekv serve`)"};
  app.add_option("--model", options.model_dir, "checkpoint directory")->required();
  app.add_option("--socket", options.socket, "Unix socket for Worker.Run")->required();
  app.add_option("--attach-socket", options.attach_socket, "the store's attach socket")->required();
  app.add_option("--pool", options.pool, "row pool of this rank");
  app.add_option("--device-memory", options.device_bytes, "bytes")->required();
  app.add_option("--max-batch", options.max_batch, "sequences of one step")
      ->default_val(kMaxBatch)
      ->check(CLI::Range(1u, kMaxBatch));
  app.add_option("--threads", options.threads, "0 = every core");
  app.add_option("--backend", options.backend)->check(CLI::IsMember({"cpu", "cuda"}));
  app.add_option("--device", options.device, "which CUDA device")->check(CLI::Range(0, 63));
  app.add_flag("!--no-graphs", options.graphs, "launch every kernel of a step by itself");
  app.add_flag("!--no-early-launch", options.early_launch, "begin kernels one after the other");
  app.add_flag("--exact-prompts", options.exact_prompts,
               "inputs of all prompt products keep 16 bits");
  app.add_flag("--mirror-rows", options.mirror_rows,
               "keep offloaded rows twice in host memory, once where the device reads fastest");
  app.add_option(
      "--channels", options.channels_file,
      "channel config; default MODEL/channels.json where it exists; none = no selection");
  app.add_flag("--rows-on-device,!--rows-in-place", rows_on_device,
               "bring token rows to the device, or attend them where they lie (default)");
  app.add_option("--hot-rows", options.rows.hot_rows,
                 "rows of an offloaded sequence per layer and KV head that stay on the device; 0 = "
                 "a double buffer")
      ->check(CLI::Range(0u, DeviceRows::kMostSelected));
  app.add_flag("--predict", options.rows.predict, "predictions may be asked for");
  app.add_option("--fetch", options.fetch, "how predicted rows come: direct or gather")
      ->check(CLI::IsMember({"direct", "gather"}));
  app.add_option("--link", options.link, "simulated link to the device: BYTES_PER_S,LATENCY_S");
  app.add_option("--parent-pid", parent, "exit when this process is gone");
  if (argc == 2 && std::string_view(argv[1]) == "--probe") return Probe();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  options.rows.in_place = !rows_on_device;
  InitLog("sparsekv-gpu-worker");
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (parent != 0 && getppid() != parent) return 0;  // it died before we asked to be told
  const absl::Status status = RunWorker(options);
  if (status.ok()) return 0;
  PrintError("sparsekv-gpu-worker", std::string(status.message()));
  return 1;
}

}  // namespace
}  // namespace sparsekv

int main(int argc, char** argv) { return sparsekv::Main(argc, argv); }
