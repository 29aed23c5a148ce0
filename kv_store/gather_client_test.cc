#include "kv_store/gather_client.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "base/spin.h"
#include "kv_store/client.h"
#include "kv_store/gather_testing.h"

namespace sparsekv::kv_store {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using State = GatherClient::State;
using Ticket = GatherClient::Ticket;

constexpr RowLayout kLayout = {.layers = 3, .kv_heads = 2, .head_dim = 16, .blocks = 24};
constexpr uint64_t kOwner = 77;
constexpr uint32_t kTokens = 8 * kBlockTokens - 20;
const RowRef kAnyRow = {.block = 1, .generation = 1, .kv_head = 0, .token = 2};

steady_clock::time_point In(milliseconds time) { return steady_clock::now() + time; }
steady_clock::time_point Soon() { return In(std::chrono::seconds(60)); }  // on a busy machine
size_t StagingOf(uint32_t slots) {
  return slots * GatherGeometry::Of(kLayout.row_bytes(), 0).slot_bytes();
}

// A local segment with a sequence in it, served by its own threads.
class LocalGather : public testing::Test {
 protected:
  void Start(uint32_t threads, uint32_t slots) {
    segment_ = SegmentClient::MakeLocal(kLayout, kTestFingerprint);
    EXPECT_EQ(segment_->gather(), nullptr);
    segment_->StartLocalGather(threads, StagingOf(slots));
    gather_ = segment_->gather();
    grant_ = *segment_->Grant(kTokens, kOwner);
    WriteSequence(segment_->rows(), kLayout, grant_, kOwner, kTokens);
  }
  std::vector<RowRef> RandomRows(size_t count) {
    std::vector<RowRef> rows;
    for (size_t i = 0; i < count; ++i) {
      rows.push_back(RefOf(grant_, static_cast<uint32_t>(random_() % kLayout.kv_heads),
                           static_cast<uint32_t>(random_() % kTokens)));
    }
    return rows;
  }
  // Bit for bit what a direct read gives.
  void ExpectRows(Ticket ticket, uint32_t layer, const std::vector<RowRef>& rows) {
    for (size_t i = 0; i < rows.size(); ++i) {
      ASSERT_EQ(std::memcmp(gather_->Rows(ticket) + i * kLayout.row_bytes(),
                            RowAt(segment_->rows(), kLayout, layer, rows[i]), kLayout.row_bytes()),
                0)
          << "row " << i << " of " << rows.size();
    }
  }

  std::mt19937 random_{1};
  std::unique_ptr<SegmentClient> segment_;
  GatherClient* gather_ = nullptr;
  BlockGrant grant_;
};

TEST_F(LocalGather, RandomRequestsEqualDirectReads) {
  for (uint32_t threads : {1, 3}) {
    Start(threads, 8);
    uint64_t rows_asked = 0;
    for (int round = 0; round < 300; ++round) {
      struct Asked {
        Ticket ticket;
        uint32_t layer;
        std::vector<RowRef> rows;
      };
      std::vector<Asked> asked;
      for (int i = 0; i < 8; ++i) {
        const uint32_t layer = static_cast<uint32_t>(random_() % kLayout.layers);
        std::vector<RowRef> rows = RandomRows(1 + random_() % gather_->max_rows());
        auto ticket = gather_->Post(layer, kOwner, rows);
        ASSERT_TRUE(ticket);
        rows_asked += rows.size();
        asked.push_back({*ticket, layer, std::move(rows)});
      }
      std::shuffle(asked.begin(), asked.end(), random_);
      for (const Asked& one : asked) {
        ASSERT_EQ(gather_->Wait(one.ticket, Soon()), State::kDone);
        ExpectRows(one.ticket, one.layer, one.rows);
        if (round % 2) gather_->Release(one.ticket);
      }
      if (round % 2 == 0) {
        for (const Asked& one : asked) gather_->Release(one.ticket);
      }
    }
    const GatherClient::Counters counters = gather_->counters();
    EXPECT_EQ(counters.posted, 2400u);
    EXPECT_EQ(counters.done, 2400u);
    EXPECT_EQ(counters.rows, rows_asked);
    EXPECT_EQ(counters.expired + counters.refused + counters.gone + counters.turned_away, 0u);
  }
}

TEST_F(LocalGather, OneBadRowRefusesTheRequest) {
  Start(1, 2);
  std::vector<RowRef> rows = RandomRows(100);
  ++rows[99].generation;
  const auto bad = gather_->Post(1, kOwner, rows);
  EXPECT_EQ(gather_->Wait(*bad, Soon()), State::kRefused);
  EXPECT_EQ(gather_->Wait(*bad, Soon()), State::kRefused);
  gather_->Release(*bad);
  EXPECT_EQ(gather_->counters().refused, 1u);
  --rows[99].generation;
  const auto good = gather_->Post(1, kOwner, rows);
  EXPECT_EQ(gather_->Wait(*good, Soon()), State::kDone);
  ExpectRows(*good, 1, rows);
}

// Posts come just when the store's thread has watched long enough and goes to sleep.
TEST_F(LocalGather, NoWakeUpIsLost) {
  Start(1, 2);
  const std::vector<RowRef> rows = RandomRows(1);
  for (int i = 0; i < 8000; ++i) {
    const auto pause = std::chrono::nanoseconds(40'000 + random_() % 30'000);
    SpinUntil(steady_clock::now() + pause, [] { return false; });
    const auto ticket = gather_->Post(0, kOwner, rows);
    ASSERT_EQ(gather_->Wait(*ticket, Soon()), State::kDone) << i;
    gather_->Release(*ticket);
  }
}

TEST_F(LocalGather, WithoutThreadsEveryRequestExpires) {
  Start(0, 2);
  const auto ticket = gather_->Post(0, kOwner, RandomRows(3));
  const auto deadline = In(milliseconds(20));
  EXPECT_EQ(gather_->Wait(*ticket, deadline), State::kExpired);
  EXPECT_GE(steady_clock::now(), deadline);
  EXPECT_LT(steady_clock::now(), deadline + std::chrono::seconds(10));
  gather_->Release(*ticket);
  EXPECT_EQ(gather_->counters().expired, 1u);
}

// The store's side, played by the test: it answers when it is told to.
class PlayedStore {
 public:
  explicit PlayedStore(uint32_t slots, uint64_t boot_id = 1) : boot_id_(boot_id) {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends), 0);
    store_end_ = UniqueFd(ends[0]);
    worker_end_ = std::make_shared<UniqueFd>(ends[1]);
    const GatherGeometry geometry = {.slots = slots, .row_bytes = kLayout.row_bytes()};
    fds_ = {.memory = *CreateMemfd("gather"),
            .doorbell = UniqueFd(eventfd(0, EFD_NONBLOCK)),
            .completion = UniqueFd(eventfd(0, EFD_NONBLOCK))};
    EXPECT_TRUE(SizeAndPopulate(fds_.memory.get(), geometry.file_bytes()).ok());
    memory_ =
        *Mapping::OfFile(fds_.memory.get(), geometry.file_bytes(), Mapping::Access::kReadWrite);
    view_ = GatherView(memory_.data(), geometry);
    view_.header().magic = kGatherMagic;
    view_.header().version = kGatherVersion;
    view_.header().slots = slots;
    view_.header().row_bytes = geometry.row_bytes;
    view_.header().store_boot_id = boot_id;
  }
  GatherClient::Fds Fds() const {
    return Duplicates({.memory_fd = fds_.memory.get(),
                       .doorbell_fd = fds_.doorbell.get(),
                       .completion_fd = fds_.completion.get()});
  }
  absl::StatusOr<std::unique_ptr<GatherClient>> Client(bool seal = true) {
    EXPECT_TRUE(!seal || SealSize(fds_.memory.get()).ok());
    return GatherClient::Make(kLayout, boot_id_, Fds(), worker_end_);
  }
  absl::Status Renew(GatherClient& client) {
    EXPECT_TRUE(SealSize(fds_.memory.get()).ok());
    return client.Renew(boot_id_, Fds(), worker_end_);
  }
  void Answer(Ticket ticket, GatherStatus status) {
    view_.completion(ticket.slot) = MakeCompletion(ticket.position, status);
    const uint64_t one = 1;
    EXPECT_EQ(write(fds_.completion.get(), &one, sizeof one), 8);
  }
  void Die() { store_end_ = UniqueFd(); }
  bool Rung() {
    uint64_t count = 0;
    return read(fds_.doorbell.get(), &count, sizeof count) == 8;
  }
  GatherHeader& header() { return view_.header(); }

 private:
  const uint64_t boot_id_;
  UniqueFd store_end_;
  std::shared_ptr<UniqueFd> worker_end_;
  GatherClient::Fds fds_;
  Mapping memory_;
  GatherView view_;
};

Ticket MustPost(GatherClient& client) {
  const auto ticket = client.Post(0, kOwner, std::vector<RowRef>{kAnyRow});
  EXPECT_TRUE(ticket);
  return ticket.value_or(Ticket{});
}
bool TurnedAway(GatherClient& client) {
  return !client.Post(0, kOwner, std::vector<RowRef>{kAnyRow}).has_value();
}

TEST(GatherClient, TheDoorbellRingsForSleepersOnly) {
  PlayedStore store(4);
  auto client = *store.Client();
  MustPost(*client);
  EXPECT_FALSE(store.Rung());
  store.header().sleepers = 2;
  MustPost(*client);
  EXPECT_TRUE(store.Rung());
  EXPECT_EQ(store.header().posted, 2u);
}

TEST(GatherClient, EverySlotTakenTurnsPostsAway) {
  PlayedStore store(3);
  auto client = *store.Client();
  std::vector<Ticket> tickets;
  for (int i = 0; i < 3; ++i) tickets.push_back(MustPost(*client));
  EXPECT_TRUE(TurnedAway(*client));
  store.Answer(tickets[1], GatherStatus::kDone);
  EXPECT_EQ(client->Wait(tickets[1], Soon()), State::kDone);
  EXPECT_TRUE(TurnedAway(*client));  // its rows may still be read
  client->Release(tickets[1]);
  EXPECT_EQ(MustPost(*client).slot, tickets[1].slot);
  EXPECT_EQ(client->counters().turned_away, 2u);
  EXPECT_EQ(client->counters().posted, 4u);
}

TEST(GatherClient, EveryRefusalIsARefusal) {
  PlayedStore store(2);
  auto client = *store.Client();
  for (GatherStatus status :
       {GatherStatus::kBadEntry, GatherStatus::kBadIndex, GatherStatus::kNotHeld,
        GatherStatus::kNotValid, GatherStatus(0), GatherStatus(255)}) {
    const Ticket ticket = MustPost(*client);
    store.Answer(ticket, status);
    EXPECT_EQ(client->Wait(ticket, Soon()), State::kRefused);
    client->Release(ticket);
  }
}

TEST(GatherClient, AnAnswerToAnEarlierRequestOfTheSlotIsNone) {
  PlayedStore store(1);
  auto client = *store.Client();
  const Ticket first = MustPost(*client);
  store.Answer(first, GatherStatus::kDone);
  EXPECT_EQ(client->Wait(first, Soon()), State::kDone);
  client->Release(first);
  const Ticket second = MustPost(*client);
  EXPECT_EQ(second.slot, first.slot);
  EXPECT_EQ(client->Wait(second, In(milliseconds(1))), State::kExpired);
  store.Answer(second, GatherStatus::kDone);
  EXPECT_EQ(client->Wait(second, Soon()), State::kDone);  // late, and still asked for
}

TEST(GatherClient, AnExpiredSlotStaysInQuarantineUntilTheStoreAnswers) {
  PlayedStore store(2);
  auto client = *store.Client();
  const Ticket late = MustPost(*client);
  EXPECT_EQ(client->Wait(late, In(milliseconds(0))), State::kExpired);
  client->Release(late);
  const Ticket other = MustPost(*client);
  EXPECT_NE(other.slot, late.slot);
  EXPECT_TRUE(TurnedAway(*client));
  store.Answer(late, GatherStatus::kDone);
  EXPECT_EQ(MustPost(*client).slot, late.slot);
  // Released without a wait: the same.
  client->Release(other);
  EXPECT_TRUE(TurnedAway(*client));
  store.Answer(other, GatherStatus::kNotHeld);
  EXPECT_EQ(MustPost(*client).slot, other.slot);
}

TEST(GatherClient, ThreeMissesInARowBringAPauseThatGrows) {
  PlayedStore store(64);
  auto client = *store.Client();
  // Tries until a post is taken, and lets it miss; when that was.
  const auto miss = [&] {
    while (true) {
      const auto ticket = client->Post(0, kOwner, std::vector<RowRef>{kAnyRow});
      const auto now = steady_clock::now();
      if (!ticket) continue;
      EXPECT_EQ(client->Wait(*ticket, now), State::kExpired);
      client->Release(*ticket);
      return now;
    }
  };
  miss();
  miss();
  // A done request in between: misses must be in a row.
  const Ticket good = MustPost(*client);
  store.Answer(good, GatherStatus::kDone);
  EXPECT_EQ(client->Wait(good, Soon()), State::kDone);
  client->Release(good);
  miss();
  miss();
  EXPECT_EQ(client->counters().turned_away, 0u);
  auto since = miss();
  for (milliseconds pause : {milliseconds(10), milliseconds(20), milliseconds(40)}) {
    const auto taken = miss();
    EXPECT_GE(taken - since, pause);
    since = taken;
  }
}

TEST(GatherClient, AWaveOfMissesIsOneMiss) {
  PlayedStore store(64);
  auto client = *store.Client();
  std::vector<Ticket> wave;
  for (int i = 0; i < 60; ++i) wave.push_back(MustPost(*client));
  for (const Ticket& ticket : wave) {
    EXPECT_EQ(client->Wait(ticket, In(milliseconds(0))), State::kExpired);
    store.Answer(ticket, GatherStatus::kDone);
    client->Release(ticket);
  }
  const auto limit = In(milliseconds(800));  // 10 ms, or one second had every miss doubled it
  while (TurnedAway(*client)) ASSERT_LT(steady_clock::now(), limit);
}

TEST(GatherClient, AStoreThatGoesWakesTheWaiter) {
  PlayedStore store(4);
  auto client = *store.Client();
  const Ticket done = MustPost(*client), answered = MustPost(*client), open = MustPost(*client);
  store.Answer(done, GatherStatus::kDone);
  EXPECT_EQ(client->Wait(done, Soon()), State::kDone);
  std::thread death([&] {
    std::this_thread::sleep_for(milliseconds(20));
    store.Answer(answered, GatherStatus::kDone);
    store.Die();
  });
  EXPECT_EQ(client->Wait(open, Soon()), State::kGone);
  death.join();
  EXPECT_EQ(client->Wait(answered, Soon()), State::kDone);  // what it did before counts
  EXPECT_EQ(client->Wait(done, Soon()), State::kDone);
  EXPECT_NE(client->Rows(done), nullptr);
  EXPECT_TRUE(TurnedAway(*client));
  EXPECT_EQ(client->counters().gone, 1u);
}

TEST(GatherClient, ANewStoreTakesOverOnceTheOldTicketsAreReleased) {
  PlayedStore old(4), next(4, 2);
  auto client = *old.Client();
  const Ticket done = MustPost(*client), open = MustPost(*client);
  old.Answer(done, GatherStatus::kDone);
  old.Die();
  EXPECT_EQ(client->Wait(done, Soon()), State::kDone);
  std::thread other([&] { EXPECT_TRUE(next.Renew(*client).ok()); });
  other.join();
  EXPECT_EQ(client->Wait(open, Soon()), State::kGone);
  const std::byte* rows = client->Rows(done);
  EXPECT_TRUE(TurnedAway(*client));
  EXPECT_EQ(rows[0], std::byte{0});  // still there
  client->Release(open);
  EXPECT_TRUE(TurnedAway(*client));
  client->Release(done);
  const Ticket first = MustPost(*client);
  EXPECT_EQ(first.position, 0u);
  EXPECT_EQ(next.header().posted, 1u);
  next.Answer(first, GatherStatus::kDone);
  EXPECT_EQ(client->Wait(first, Soon()), State::kDone);
}

TEST(GatherClient, MemoryThatIsNotTheStoresIsRefused) {
  const std::vector<std::function<void(GatherHeader&)>> corruptions = {
      [](GatherHeader& header) { header.magic ^= 1; },
      [](GatherHeader& header) { ++header.version; },
      [](GatherHeader& header) { header.slots = 0; },
      [](GatherHeader& header) { header.slots = kMaxSlots + 1; },
      [](GatherHeader& header) { header.slots = ~0u; },
      [](GatherHeader& header) { ++header.slots; },  // the file is too short
      [](GatherHeader& header) { header.row_bytes *= 2; },
      [](GatherHeader& header) { ++header.store_boot_id; },
  };
  for (size_t i = 0; i <= corruptions.size(); ++i) {
    PlayedStore store(2);
    if (i < corruptions.size()) corruptions[i](store.header());
    const auto client = store.Client();
    EXPECT_EQ(client.ok(), i == corruptions.size()) << i;
    EXPECT_TRUE(client.ok() || absl::IsDataLoss(client.status())) << client.status();
  }
  PlayedStore store(2);
  EXPECT_FALSE(store.Client(/*seal=*/false).ok());
}

TEST(GatherClientDeathTest, MisuseAborts) {
  PlayedStore store(2);
  auto client = *store.Client();
  const Ticket ticket = MustPost(*client);
  EXPECT_DEATH(client->Rows(ticket), "kDone");
  EXPECT_DEATH(client->Post(0, kOwner, {}), "check failed");
  EXPECT_DEATH(client->Post(0, kOwner, std::vector<RowRef>(client->max_rows() + 1)),
               "check failed");
  client->Release(ticket);
  EXPECT_DEATH(client->Release(ticket), "check failed");
}

}  // namespace
}  // namespace sparsekv::kv_store
