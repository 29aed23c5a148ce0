#include "kv_store/gather_server.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/spin.h"
#include "kv_store/memory_check.h"

namespace sparsekv::kv_store {
namespace {

// How long a thread watches the rings after its last request: about as long as the worker needs to
// come back with the next layer's, and no more, since the core may be somebody else's.
constexpr auto kWatch = std::chrono::microseconds(50);

absl::StatusOr<UniqueFd> MakeEventFd() {
  UniqueFd fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!fd) return absl::ErrnoToStatus(errno, "eventfd");
  return fd;
}

// Whoever owns the other end may have filled the counter; then the event is there already.
void Ring(const UniqueFd& fd) {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(fd.get(), &one, sizeof one);
}

// The row may be overwritten meanwhile, if its block went to somebody else: the check afterwards
// finds out. Under tsan the race is left unseen, and nothing else is.
#if defined(__SANITIZE_THREAD__)
[[gnu::no_sanitize("thread")]] void CopyRow(std::byte* to, const std::byte* from, size_t bytes) {
  for (const volatile std::byte* end = from + bytes; from != end; ++to, ++from) {
    *to = *const_cast<const volatile std::byte*>(from);
  }
}
#else
void CopyRow(std::byte* to, const std::byte* from, size_t bytes) { std::memcpy(to, from, bytes); }
#endif

}  // namespace

size_t GatherServer::BytesPerWorker(const RowLayout& layout, size_t staging_bytes) {
  return GatherGeometry::Of(layout.row_bytes(), staging_bytes).file_bytes();
}

absl::StatusOr<std::unique_ptr<GatherServer>> GatherServer::Start(const Config& config,
                                                                  std::vector<Pool> pools) {
  std::unique_ptr<GatherServer> server(new GatherServer(config, std::move(pools)));
  if (server->geometry_.slots == 0) {
    return absl::InvalidArgumentError(absl::StrCat("staging bytes: ", config.staging_bytes,
                                                   ", and one slot of ", kMaxRequestRows,
                                                   " rows has ", server->geometry_.slot_bytes()));
  }
  server->epoll_ = UniqueFd(epoll_create1(EPOLL_CLOEXEC));
  if (!server->epoll_) return absl::ErrnoToStatus(errno, "epoll_create1");
  absl::StatusOr<UniqueFd> stop = MakeEventFd();
  if (!stop.ok()) return stop.status();
  server->stop_ = std::move(*stop);
  epoll_event event = {.events = EPOLLIN, .data = {}};
  if (epoll_ctl(server->epoll_.get(), EPOLL_CTL_ADD, server->stop_.get(), &event) != 0) {
    return absl::ErrnoToStatus(errno, "epoll_ctl");
  }
  for (uint32_t i = 0; i < config.threads; ++i) {
    server->threads_.emplace_back(
        [server = server.get()](const std::stop_token& stop_token) { server->Serve(stop_token); });
  }
  return server;
}

GatherServer::GatherServer(const Config& config, std::vector<Pool> pools)
    : config_(config),
      geometry_(GatherGeometry::Of(config.layout.row_bytes(), config.staging_bytes)),
      pools_(std::move(pools)),
      sessions_(pools_.size()) {
  CHECK(!pools_.empty());
}

GatherServer::~GatherServer() {
  for (std::jthread& thread : threads_) thread.request_stop();
  if (stop_) Ring(stop_);
  threads_.clear();
}

absl::StatusOr<std::shared_ptr<GatherServer::Session>> GatherServer::MakeSession(
    uint32_t pool) const {
  absl::StatusOr<size_t> available = AvailableMemory();
  if (!available.ok()) return available.status();
  absl::Status status = CheckMemory(geometry_.file_bytes(), *available, "gather");
  if (!status.ok()) return status;
  absl::StatusOr<UniqueFd> memory_fd = CreateMemfd("sparsekv-gather");
  if (!memory_fd.ok()) return memory_fd.status();
  if (status = SizeAndPopulate(memory_fd->get(), geometry_.file_bytes()); !status.ok()) {
    return status;
  }
  if (status = SealSize(memory_fd->get()); !status.ok()) return status;
  absl::StatusOr<Mapping> memory =
      Mapping::OfFile(memory_fd->get(), geometry_.file_bytes(), Mapping::Access::kReadWrite);
  absl::StatusOr<UniqueFd> doorbell = MakeEventFd();
  absl::StatusOr<UniqueFd> completion = MakeEventFd();
  if (!memory.ok()) return memory.status();
  if (!doorbell.ok()) return doorbell.status();
  if (!completion.ok()) return completion.status();
  // Saves the first requests their page faults, where the kernel can do it (5.14).
  madvise(memory->data(), memory->size(), MADV_POPULATE_WRITE);

  auto session = std::make_shared<Session>();
  session->pool = pools_[pool];
  session->memory = std::move(*memory);
  session->memory_fd = std::move(*memory_fd);
  session->doorbell = std::move(*doorbell);
  session->completion = std::move(*completion);
  session->view = GatherView(session->memory.data(), geometry_);
  GatherHeader& header = session->view.header();
  header.magic = kGatherMagic;
  header.version = kGatherVersion;
  header.slots = geometry_.slots;
  header.row_bytes = geometry_.row_bytes;
  header.store_boot_id = config_.store_boot_id;
  return session;
}

absl::StatusOr<GatherServer::Offer> GatherServer::Open(uint32_t pool) {
  CHECK_LT(pool, pools_.size());
  Close(pool);
  absl::StatusOr<std::shared_ptr<Session>> session = MakeSession(pool);
  if (!session.ok()) return session.status();
  // Edge-triggered: every ring wakes one thread, and nobody has to read the counter.
  epoll_event event = {.events = EPOLLIN | EPOLLET, .data = {}};
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, (*session)->doorbell.get(), &event) != 0) {
    return absl::ErrnoToStatus(errno, "epoll_ctl");
  }
  std::lock_guard lock(mutex_);
  sessions_[pool] = *session;
  AnnounceSleepers();
  return Offer{.memory_fd = (*session)->memory_fd.get(),
               .doorbell_fd = (*session)->doorbell.get(),
               .completion_fd = (*session)->completion.get()};
}

void GatherServer::Close(uint32_t pool) {
  CHECK_LT(pool, pools_.size());
  std::shared_ptr<Session> session;  // goes after the lock, unless a request of it is under way
  std::lock_guard lock(mutex_);
  session.swap(sessions_[pool]);
  if (!session) return;
  // The worker may hold a duplicate, so closing ours would not take it out.
  CHECK_EQ(epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, session->doorbell.get(), nullptr), 0);
}

GatherServer::Counters GatherServer::counters() const {
  std::lock_guard lock(mutex_);
  return counters_;
}

void GatherServer::Serve(const std::stop_token& stop) {
  while (!stop.stop_requested()) {
    std::optional<Request> request;
    const auto limit = std::chrono::steady_clock::now() + kWatch;
    SpinUntil(limit, [&] { return (request = Take()).has_value() || stop.stop_requested(); });
    if (request) {
      Handle(*request);
    } else {
      Sleep();
    }
  }
}

// Sleepers are announced before the rings are looked at once more, and a worker posts before it
// looks at the sleepers, all in one order: either it sees us or we see its request.
void GatherServer::Sleep() {
  bool posted = false;
  {
    std::lock_guard lock(mutex_);
    ++sleepers_;
    AnnounceSleepers();
    for (const auto& session : sessions_) {
      posted = posted || (session && session->view.header().posted.load() != session->taken);
    }
  }
  epoll_event event = {};
  if (!posted) epoll_wait(epoll_.get(), &event, 1, -1);
  std::lock_guard lock(mutex_);
  --sleepers_;
  AnnounceSleepers();
}

void GatherServer::AnnounceSleepers() {
  for (const auto& session : sessions_) {
    if (session) session->view.header().sleepers.store(sleepers_);
  }
}

// One request of the next pool that has any, so that no worker can keep the others waiting.
std::optional<GatherServer::Request> GatherServer::Take() {
  std::lock_guard lock(mutex_);
  for (size_t i = 0; i < sessions_.size(); ++i) {
    const std::shared_ptr<Session>& session = sessions_[next_pool_];
    next_pool_ = (next_pool_ + 1) % static_cast<uint32_t>(sessions_.size());
    if (!session) continue;
    const uint64_t posted = session->view.header().posted.load(std::memory_order_acquire);
    if (posted == session->taken) continue;
    if (posted - session->taken > kRingEntries) {  // overwritten, or garbage
      session->taken = posted;
      ++counters_.refused;
      continue;
    }
    const uint64_t position = session->taken++;
    const GatherEntry& entry = session->view.entry(position);
    return Request{.session = session,
                   .position = position,
                   .owner = entry.owner.load(std::memory_order_relaxed),
                   .layer = entry.layer.load(std::memory_order_relaxed),
                   .slot = entry.slot.load(std::memory_order_relaxed),
                   .rows = entry.rows.load(std::memory_order_relaxed)};
  }
  return std::nullopt;
}

void GatherServer::Handle(const Request& request) {
  const GatherView& view = request.session->view;
  const bool slot_exists = request.slot < geometry_.slots;
  GatherStatus status = GatherStatus::kBadEntry;
  if (slot_exists) status = Gather(request, view.staging(request.slot));
  {
    // Counted before it is seen to be done.
    std::lock_guard lock(mutex_);
    const bool done = status == GatherStatus::kDone;
    counters_.requests += done;
    counters_.rows += done ? request.rows : 0;
    counters_.refused += !done;
  }
  if (!slot_exists) return;  // and so has no place for an answer
  // In one order with the worker's announcement that it waits: see GatherClient.
  view.completion(request.slot).store(MakeCompletion(request.position, status));
  if (view.header().waiting.load() != 0) Ring(request.session->completion);
}

GatherStatus GatherServer::Gather(const Request& request, std::byte* staging) const {
  const RowLayout& layout = config_.layout;
  if (request.owner == 0 || request.layer >= layout.layers || request.rows == 0 ||
      request.rows > kMaxRequestRows) {
    return GatherStatus::kBadEntry;
  }
  std::array<Index, kMaxRequestRows> copies = {};
  const GatherIndex* shared = request.session->view.indices(request.slot);
  for (uint32_t i = 0; i < request.rows; ++i) {
    const uint32_t place = shared[i].place.load(std::memory_order_relaxed);
    copies[i] = {.block = shared[i].block.load(std::memory_order_relaxed),
                 .generation = shared[i].generation.load(std::memory_order_relaxed),
                 .kv_head = place & 0xffff,
                 .token = place >> 16};
    if (copies[i].block >= layout.blocks || copies[i].kv_head >= layout.kv_heads ||
        copies[i].token >= kBlockTokens) {
      return GatherStatus::kBadIndex;
    }
  }
  const std::span<const Index> indices(copies.data(), request.rows);
  if (GatherStatus status = CheckRows(request, indices); status != GatherStatus::kDone) {
    return status;
  }
  for (const Index& index : indices) {
    const std::byte* from = request.session->pool.rows +
                            layout.BlockOffset(request.layer, index.block) +
                            layout.RowOffset(index.kv_head, index.token);
    CopyRow(staging, from, geometry_.row_bytes);
    staging += geometry_.row_bytes;
  }
  // Whoever writes to a block that went to another owner does so after the table says it: where a
  // byte of theirs was copied, what is read below shows the change.
  std::atomic_thread_fence(std::memory_order_acquire);
  return CheckRows(request, indices);
}

// Whether every row is complete, and a row of the request's owner and layer at its generation, now.
GatherStatus GatherServer::CheckRows(const Request& request, std::span<const Index> indices) const {
  const Pool& pool = request.session->pool;
  const RowStamp* stamps =
      StampsOf(pool.rows, config_.layout) + size_t{request.layer} * config_.layout.blocks;
  uint32_t rows_valid = 0;
  const Index* last = nullptr;
  for (const Index& index : indices) {
    if (!last || index.block != last->block || index.generation != last->generation) {
      const BlockFacts block = ReadBlock(pool.blocks[index.block]);
      const uint64_t held = MakeTag(index.generation, static_cast<uint32_t>(BlockState::kHeld));
      if (block.tag != held || block.tag_after != held || block.owner != request.owner ||
          block.fingerprint != config_.fingerprint) {
        return GatherStatus::kNotHeld;
      }
      const StampFacts stamp = ReadStamp(stamps[index.block]);
      if (TagGeneration(stamp.tag) != index.generation ||
          TagGeneration(stamp.tag_after) != index.generation || stamp.owner != request.owner ||
          stamp.layer != request.layer || stamp.first_position != block.first_position ||
          stamp.fingerprint != config_.fingerprint) {
        return GatherStatus::kNotValid;
      }
      rows_valid = TagLow(stamp.tag);
    }
    if (index.token >= rows_valid) return GatherStatus::kNotValid;
    last = &index;
  }
  return GatherStatus::kDone;
}

}  // namespace sparsekv::kv_store
