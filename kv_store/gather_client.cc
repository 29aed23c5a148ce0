#include "kv_store/gather_client.h"

#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/spin.h"

namespace sparsekv::kv_store {
namespace {

using std::chrono::steady_clock;

constexpr auto kWatch = std::chrono::microseconds(30);  // before a wait sleeps
constexpr uint32_t kMissesBeforePause = 3;
constexpr auto kFirstPause = std::chrono::milliseconds(10);
constexpr auto kLongestPause = std::chrono::seconds(1);

void Add(std::atomic<uint64_t>& count, uint64_t value) {
  count.fetch_add(value, std::memory_order_relaxed);
}

timespec ToTimespec(steady_clock::duration duration) {
  const auto nanoseconds = std::chrono::nanoseconds(duration).count();
  return {.tv_sec = nanoseconds / 1'000'000'000, .tv_nsec = nanoseconds % 1'000'000'000};
}

}  // namespace

absl::StatusOr<std::unique_ptr<GatherClient>> GatherClient::Make(
    const RowLayout& layout, uint64_t store_boot_id, Fds fds,
    std::shared_ptr<const UniqueFd> connection) {
  std::unique_ptr<GatherClient> client(new GatherClient(layout));
  absl::StatusOr<std::unique_ptr<Session>> session =
      client->Map(store_boot_id, std::move(fds), std::move(connection));
  if (!session.ok()) return session.status();
  client->session_ = std::move(*session);
  return client;
}

// As with the segment: the size comes from the header's copy, and the file must be sealed at
// exactly that size, so that no later access can fail.
absl::StatusOr<std::unique_ptr<GatherClient::Session>> GatherClient::Map(
    uint64_t store_boot_id, Fds fds, std::shared_ptr<const UniqueFd> connection) const {
  const absl::Status broken = absl::DataLossError("the store passed gather memory of no use");
  absl::StatusOr<bool> sealed = IsSizeSealed(fds.memory.get());
  if (!sealed.ok()) return sealed.status();
  if (!*sealed) return broken;
  absl::StatusOr<size_t> bytes = FileBytes(fds.memory.get());
  if (!bytes.ok()) return bytes.status();
  if (*bytes < kPage) return broken;
  absl::StatusOr<Mapping> memory =
      Mapping::OfFile(fds.memory.get(), *bytes, Mapping::Access::kReadWrite);
  if (!memory.ok()) return memory.status();
  const GatherHeader& header = *reinterpret_cast<const GatherHeader*>(memory->data());
  const GatherGeometry geometry = {.slots = header.slots, .row_bytes = layout_.row_bytes()};
  if (header.magic != kGatherMagic || header.version != kGatherVersion ||
      header.store_boot_id != store_boot_id || header.row_bytes != geometry.row_bytes ||
      geometry.slots == 0 || geometry.slots > kMaxSlots || geometry.file_bytes() != *bytes) {
    return broken;
  }
  // Saves the first requests their page faults, where the kernel can do it (5.14).
  madvise(memory->data(), memory->size(), MADV_POPULATE_WRITE);

  auto session = std::make_unique<Session>();
  session->memory = std::move(*memory);
  session->view = GatherView(session->memory.data(), geometry);
  session->doorbell = std::move(fds.doorbell);
  session->completion = std::move(fds.completion);
  session->connection = std::move(connection);
  session->slots.resize(geometry.slots);
  for (uint32_t slot = geometry.slots; slot-- > 0;) session->free.push_back(slot);
  return session;
}

absl::Status GatherClient::Renew(uint64_t store_boot_id, Fds fds,
                                 std::shared_ptr<const UniqueFd> connection) {
  absl::StatusOr<std::unique_ptr<Session>> session =
      Map(store_boot_id, std::move(fds), std::move(connection));
  if (!session.ok()) return session.status();
  std::lock_guard lock(mutex_);
  renewed_ = std::move(*session);
  renewal_.store(true, std::memory_order_release);
  return absl::OkStatus();
}

bool GatherClient::MayPost() {
  if (renewal_.load(std::memory_order_acquire)) {
    if (session_->held != 0) return false;  // their rows lie in the old memory
    std::lock_guard lock(mutex_);
    session_ = std::move(renewed_);
    renewal_.store(false, std::memory_order_relaxed);
    misses_ = 0;
    paused_until_ = {};
  }
  if (session_->gone) return false;
  return misses_ < kMissesBeforePause || steady_clock::now() >= paused_until_;
}

std::optional<uint32_t> GatherClient::TakeSlot() {
  Session& session = *session_;
  std::erase_if(session.quarantine, [&](uint32_t index) {
    if (!Collect(index)) return false;
    session.slots[index] = {};
    session.free.push_back(index);
    return true;
  });
  if (session.free.empty()) return std::nullopt;
  const uint32_t index = session.free.back();  // the last one used: its lines are the warmest
  session.free.pop_back();
  return index;
}

std::optional<GatherClient::Ticket> GatherClient::Post(uint32_t layer, uint64_t owner,
                                                       std::span<const RowRef> rows) {
  CHECK_GT(rows.size(), 0u);
  CHECK_LE(rows.size(), max_rows());
  const std::optional<uint32_t> index = MayPost() ? TakeSlot() : std::nullopt;
  if (!index) {
    Add(counts_.turned_away, 1);
    return std::nullopt;
  }
  Session& session = *session_;
  const uint64_t position = session.posted++;
  session.slots[*index] = {.state = SlotState::kPosted,
                           .released = false,
                           .position = position,
                           .rows = static_cast<uint32_t>(rows.size())};
  GatherIndex* indices = session.view.indices(*index);
  for (size_t i = 0; i < rows.size(); ++i) {
    indices[i].block.store(rows[i].block, std::memory_order_relaxed);
    indices[i].generation.store(rows[i].generation, std::memory_order_relaxed);
    indices[i].place.store(uint32_t{rows[i].token} << 16 | rows[i].kv_head,
                           std::memory_order_relaxed);
  }
  GatherEntry& entry = session.view.entry(position);
  entry.owner.store(owner, std::memory_order_relaxed);
  entry.layer.store(layer, std::memory_order_relaxed);
  entry.slot.store(*index, std::memory_order_relaxed);
  entry.rows.store(static_cast<uint32_t>(rows.size()), std::memory_order_relaxed);
  // In one order with the store's announcement that it sleeps: see GatherServer::Sleep.
  session.view.header().posted.store(session.posted);
  if (session.view.header().sleepers.load() != 0) {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(session.doorbell.get(), &one, sizeof one);
  }
  ++session.held;
  Add(counts_.posted, 1);
  return Ticket{.slot = *index, .position = position};
}

GatherClient::Slot& GatherClient::SlotOf(Ticket ticket) const {
  CHECK_LT(ticket.slot, session_->slots.size());
  Slot& slot = session_->slots[ticket.slot];
  CHECK(slot.state != SlotState::kFree && !slot.released);
  CHECK_EQ(slot.position, ticket.position);
  return slot;
}

// Takes the store's answer to the slot's request; whether there is one.
bool GatherClient::Collect(uint32_t index) {
  Slot& slot = session_->slots[index];
  if (slot.state != SlotState::kPosted) return true;
  const uint64_t completion = session_->view.completion(index).load();
  if (completion >> 8 != MakeCompletion(slot.position, {}) >> 8) return false;
  const bool done = completion == MakeCompletion(slot.position, GatherStatus::kDone);
  slot.state = done ? SlotState::kDone : SlotState::kRefused;
  return true;
}

GatherClient::State GatherClient::Wait(Ticket ticket, steady_clock::time_point deadline) {
  Slot& slot = SlotOf(ticket);
  const bool news = slot.state == SlotState::kPosted;
  if (!Collect(ticket.slot)) WaitForCompletion(ticket.slot, deadline);
  switch (slot.state) {
    case SlotState::kDone:
      Add(counts_.done, news);
      Add(counts_.rows, news ? slot.rows : 0);
      if (news) misses_ = 0;
      return State::kDone;
    case SlotState::kRefused:
      Add(counts_.refused, news);
      if (news) misses_ = 0;
      return State::kRefused;
    default:
      break;
  }
  if (session_->gone || renewal_.load(std::memory_order_acquire)) {
    Add(counts_.gone, 1);
    return State::kGone;
  }
  Add(counts_.expired, 1);
  CountMiss();
  return State::kExpired;
}

// Returns when the slot is collected, the store is gone or the deadline has come.
void GatherClient::WaitForCompletion(uint32_t index, steady_clock::time_point deadline) {
  Session& session = *session_;
  const auto over = [&] {
    return Collect(index) || session.gone || renewal_.load(std::memory_order_acquire);
  };
  if (SpinUntil(std::min(deadline, steady_clock::now() + kWatch), over)) return;
  session.view.header().waiting.store(1);
  while (!over()) {
    const auto left = deadline - steady_clock::now();
    if (left <= left.zero()) break;
    const timespec timeout = ToTimespec(left);
    pollfd events[] = {{.fd = session.completion.get(), .events = POLLIN, .revents = 0},
                       {.fd = session.connection->get(), .events = POLLRDHUP, .revents = 0}};
    if (ppoll(events, 2, &timeout, nullptr) <= 0) continue;
    if (events[0].revents != 0) {
      uint64_t rung = 0;
      [[maybe_unused]] const ssize_t taken = read(session.completion.get(), &rung, sizeof rung);
    }
    // What it completed before it died still counts.
    if (events[1].revents != 0 && !Collect(index)) session.gone = true;
  }
  session.view.header().waiting.store(0, std::memory_order_relaxed);
}

// Waves of requests end together, so a pause that has begun is not made longer by the rest.
void GatherClient::CountMiss() {
  if (++misses_ < kMissesBeforePause) {
    pause_ = kFirstPause;
    return;
  }
  const auto now = steady_clock::now();
  if (now < paused_until_) return;
  paused_until_ = now + pause_;
  pause_ = std::min<steady_clock::duration>(2 * pause_, kLongestPause);
}

const std::byte* GatherClient::Rows(Ticket ticket) const {
  CHECK(SlotOf(ticket).state == SlotState::kDone);
  return session_->view.staging(ticket.slot);
}

void GatherClient::Release(Ticket ticket) {
  Slot& slot = SlotOf(ticket);
  --session_->held;
  if (Collect(ticket.slot)) {
    slot = {};
    session_->free.push_back(ticket.slot);
  } else {
    slot.released = true;
    session_->quarantine.push_back(ticket.slot);
  }
}

GatherClient::Counters GatherClient::counters() const {
  const auto get = [](const std::atomic<uint64_t>& count) {
    return count.load(std::memory_order_relaxed);
  };
  return {.posted = get(counts_.posted),
          .rows = get(counts_.rows),
          .done = get(counts_.done),
          .expired = get(counts_.expired),
          .refused = get(counts_.refused),
          .gone = get(counts_.gone),
          .turned_away = get(counts_.turned_away)};
}

}  // namespace sparsekv::kv_store
