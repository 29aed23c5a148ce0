#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <cerrno>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/ids.h"
#include "base/log.h"
#include "kv_store/attach_server.h"
#include "kv_store/block_table.h"
#include "kv_store/gather_server.h"
#include "kv_store/memory_check.h"
#include "kv_store/segment.h"
#include "kv_store/service.h"

namespace sparsekv::kv_store {
namespace {

constexpr char kProgram[] = "sparsekv-kv-store";
constexpr int kMaxFd = 1 << 20;  // below 3 lie the standard streams
constexpr int kMaxNode = 1023;
constexpr uint32_t kMaxGatherThreads = 64;
constexpr size_t kMaxStagingBytes = size_t{1} << 40;

struct Flags {
  std::string grpc_socket;
  std::string attach_socket;
  int meta_fd = -1;
  std::vector<int> rows_fds;
  std::vector<int> rows_nodes;
  RowLayout layout;
  uint64_t fingerprint = 0;
  pid_t parent_pid = 0;  // 0: whoever it is at the start
  uint32_t gather_threads = 1;
  size_t staging_bytes = kDefaultStagingBytes;
};

std::string CheckHexId(const std::string& text) {
  const bool hex = text.find_first_not_of("0123456789abcdefABCDEF") == std::string::npos;
  return hex && text.size() == 16 ? "" : "must be 16 hexadecimal digits";
}

std::string CheckDType(const std::string& text) {
  return ParseDType(text) ? "" : "must be float32, float16 or bfloat16";
}

// Returns the exit status where the process must not go on.
std::optional<int> ParseFlags(int argc, char** argv, Flags* flags) {
  CLI::App app("Owns the host memory in which token rows lie, and serves it to the workers.",
               kProgram);
  std::string dtype, fingerprint;
  app.add_option("--grpc-socket", flags->grpc_socket, "where to serve KvStore")->required();
  app.add_option("--attach-socket", flags->attach_socket, "where workers attach")->required();
  app.add_option("--meta-fd", flags->meta_fd, "inherited memfd")
      ->required()
      ->check(CLI::Range(3, kMaxFd));
  app.add_option("--rows-fd", flags->rows_fds, "inherited memfd, one per pool")
      ->required()
      ->expected(1, static_cast<int>(kMaxPools))
      ->check(CLI::Range(3, kMaxFd));
  app.add_option("--rows-node", flags->rows_nodes,
                 "per pool, the node of this machine whose memory its rows prefer; -1 = any")
      ->expected(1, static_cast<int>(kMaxPools))
      ->check(CLI::Range(-1, kMaxNode));
  app.add_option("--layers", flags->layout.layers)->required()->check(CLI::Range(1u, kMaxLayers));
  app.add_option("--kv-heads", flags->layout.kv_heads, "of one rank")
      ->required()
      ->check(CLI::Range(1u, kMaxKvHeads));
  app.add_option("--head-dim", flags->layout.head_dim)
      ->required()
      ->check(CLI::Range(1u, kMaxHeadDim));
  app.add_option("--row-dtype", dtype, "float32, float16 or bfloat16")
      ->required()
      ->check(CheckDType);
  app.add_option("--blocks", flags->layout.blocks, "row blocks of each pool")
      ->required()
      ->check(CLI::Range(1u, kMaxBlocks));
  app.add_option("--fingerprint", fingerprint, "of the model, 16 hexadecimal digits")
      ->required()
      ->check(CheckHexId);
  app.add_option("--parent-pid", flags->parent_pid, "exit if this is not the parent")
      ->check(CLI::PositiveNumber);
  app.add_option("--gather-threads", flags->gather_threads,
                 "that copy rows for the workers of all pools; 0: workers read rows themselves")
      ->check(CLI::Range(0u, kMaxGatherThreads));
  app.add_option("--staging-bytes", flags->staging_bytes, "for each pool's worker")
      ->check(CLI::Range(size_t{1}, kMaxStagingBytes));
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    PrintError(kProgram, error.what());
    return 2;
  }
  flags->layout.dtype = *ParseDType(dtype);
  flags->fingerprint = std::stoull(fingerprint, nullptr, 16);
  const size_t slot = GatherGeometry::Of(flags->layout.row_bytes(), 0).slot_bytes();
  if (flags->gather_threads > 0 && flags->staging_bytes < slot) {
    PrintError(kProgram, absl::StrCat("--staging-bytes: ", flags->staging_bytes,
                                      " do not hold one request (", slot, ")"));
    return 2;
  }
  return std::nullopt;
}

// The parent's death becomes a SIGTERM to us; the check after it closes the gap before it.
absl::Status FollowParent(pid_t expected, pid_t parent_at_start) {
  if (prctl(PR_SET_PDEATHSIG, SIGTERM) != 0) return absl::ErrnoToStatus(errno, "prctl");
  const pid_t parent = getppid();
  if (parent != (expected ? expected : parent_at_start)) {
    return absl::AbortedError("the parent process is gone");
  }
  return absl::OkStatus();
}

// What the gather memory of a worker at each pool will need is left free.
absl::StatusOr<Segment> OpenSegment(const Flags& flags, uint64_t boot_id) {
  absl::StatusOr<size_t> available = AvailableMemory();
  if (!available.ok()) return available.status();
  if (flags.gather_threads > 0) {
    const size_t gather =
        flags.rows_fds.size() * GatherServer::BytesPerWorker(flags.layout, flags.staging_bytes);
    absl::Status status = CheckMemory(gather, *available, "gather");
    if (!status.ok()) return status;
    *available -= gather;
  }
  std::vector<UniqueFd> rows_fds;
  for (int fd : flags.rows_fds) rows_fds.emplace_back(fd);
  return Segment::Open(
      {.layout = flags.layout, .fingerprint = flags.fingerprint, .nodes = flags.rows_nodes},
      UniqueFd(flags.meta_fd), std::move(rows_fds), boot_id, *available);
}

// Null if none is asked for. `rows` gets the mappings, which must outlive the server.
absl::StatusOr<std::unique_ptr<GatherServer>> StartGather(const Flags& flags, uint64_t boot_id,
                                                          const Segment& segment,
                                                          std::vector<Mapping>& rows) {
  if (flags.gather_threads == 0) return nullptr;
  const SegmentFacts& facts = segment.facts();
  std::vector<GatherServer::Pool> pools;
  for (uint32_t pool = 0; pool < facts.pools; ++pool) {
    absl::StatusOr<Mapping> mapping = segment.MapRows(pool);
    if (!mapping.ok()) return mapping.status();
    pools.push_back(
        {.blocks = segment.blocks() + size_t{pool} * facts.layout.blocks, .rows = mapping->data()});
    rows.push_back(std::move(*mapping));
  }
  return GatherServer::Start({.layout = facts.layout,
                              .fingerprint = facts.fingerprint,
                              .store_boot_id = boot_id,
                              .threads = flags.gather_threads,
                              .staging_bytes = flags.staging_bytes},
                             std::move(pools));
}

absl::Status Serve(const Flags& flags) {
  const uint64_t boot_id = NewBootId();
  absl::StatusOr<Segment> segment = OpenSegment(flags, boot_id);
  if (!segment.ok()) return segment.status();
  const SegmentFacts& facts = segment->facts();
  BlockTable table(segment->blocks(), {.pools = facts.pools,
                                       .blocks = facts.layout.blocks,
                                       .fingerprint = facts.fingerprint,
                                       .store_boot_id = boot_id});
  spdlog::info(
      "boot {} {} segment {}: {} bytes, {} pools of {} blocks; {} owners hold {} blocks, {} "
      "settled",
      HexId(boot_id), segment->adopted() ? "took over" : "made", HexId(facts.segment_id),
      segment->bytes(), facts.pools, facts.layout.blocks, table.takeover().owners,
      table.takeover().held_blocks, table.takeover().settled_blocks);

  std::vector<Mapping> rows;
  absl::StatusOr<std::unique_ptr<GatherServer>> gather =
      StartGather(flags, boot_id, *segment, rows);
  if (!gather.ok()) return gather.status();
  boost::asio::io_context io;
  boost::asio::signal_set signals(io, SIGTERM);
  AttachServer::Offer offer = {.store_boot_id = boot_id,
                               .segment_id = facts.segment_id,
                               .meta_fd = segment->meta_read_only_fd(),
                               .rows_fds = {},
                               .gather = gather->get()};
  for (uint32_t pool = 0; pool < facts.pools; ++pool)
    offer.rows_fds.push_back(segment->rows_fd(pool));
  // Whoever gets an answer to Describe may count on the attach socket: it opens first.
  absl::StatusOr<std::unique_ptr<AttachServer>> attach =
      AttachServer::Listen(io, flags.attach_socket, offer);
  if (!attach.ok()) return attach.status();
  absl::StatusOr<std::unique_ptr<KvStoreServer>> server = KvStoreServer::Start(
      io, table, {.boot_id = boot_id, .bytes_per_block = facts.layout.bytes_per_block()},
      flags.grpc_socket);
  if (!server.ok()) return server.status();

  // Shutdown waits for the calls that this thread still has to answer, so it waits elsewhere.
  std::thread shutdown;
  signals.async_wait([&](const boost::system::error_code& error, int) {
    if (error) return;
    shutdown = std::thread([&] {
      (*server)->Shutdown();
      boost::asio::post(io, [&io] { io.stop(); });
    });
  });
  io.run();
  shutdown.join();
  const GatherServer::Counters counters =
      *gather ? (*gather)->counters() : GatherServer::Counters{};
  spdlog::info("boot {} stops: gathered {} rows for {} requests, refused {}", HexId(boot_id),
               counters.rows, counters.requests, counters.refused);
  return absl::OkStatus();
}

void SetSignals() {
  // Until the service runs there is nothing to finish: an unfinished segment is made anew.
  signal(SIGTERM, [](int) { _exit(0); });
  // Ctrl-C reaches the whole group of the terminal, but the parent says when the store may go.
  signal(SIGINT, SIG_IGN);
  // A parent that takes its signals from a descriptor blocks them, and the mask is inherited.
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGTERM);
  sigprocmask(SIG_UNBLOCK, &stop, nullptr);
}

int Main(int argc, char** argv) {
  const pid_t parent_at_start = getppid();
  SetSignals();
  umask(0177);
  Flags flags;
  if (std::optional<int> exit_status = ParseFlags(argc, argv, &flags)) return *exit_status;
  InitLog(kProgram);
  absl::Status status = FollowParent(flags.parent_pid, parent_at_start);
  if (status.ok()) status = Serve(flags);
  if (status.ok()) return 0;
  PrintError(kProgram, std::string(status.message()));
  return 1;
}

}  // namespace
}  // namespace sparsekv::kv_store

int main(int argc, char** argv) { return sparsekv::kv_store::Main(argc, argv); }
