#include "kv_store/gather_server.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kv_store/gather_testing.h"

namespace sparsekv::kv_store {
namespace {

using State = GatherClient::State;

constexpr uint64_t kOwner = 77;
constexpr uint32_t kTokens = 3 * kBlockTokens - 9;
constexpr uint32_t kSlots = 4;

std::chrono::steady_clock::time_point Soon() {
  return std::chrono::steady_clock::now() + std::chrono::seconds(60);
}

// A pool's table and rows on the heap, where a sanitizer sees every access beyond them.
class TestPool {
 public:
  explicit TestPool(const RowLayout& layout)
      : layout_(layout),
        headers_(layout.blocks),
        rows_(new (std::align_val_t(kPage)) std::byte[RowsBytes(layout)]()),
        table(headers_.data(), {.pools = 1,
                                .blocks = layout.blocks,
                                .fingerprint = kTestFingerprint,
                                .store_boot_id = 5}) {}
  ~TestPool() { operator delete[](rows_, std::align_val_t(kPage)); }

  GatherServer::Pool View() const { return {.blocks = headers_.data(), .rows = rows_}; }
  BlockGrant Grant(uint64_t owner, uint32_t tokens) {
    const BlockGrant grant = *table.Allocate(0, owner, tokens);
    WriteSequence(rows_, layout_, grant, owner, tokens);
    return grant;
  }
  std::byte* rows() { return rows_; }
  BlockHeader& header(uint32_t block) { return headers_[block]; }
  RowStamp& stamp(uint32_t layer, uint32_t block) {
    return StampsOf(rows_, layout_)[layer * layout_.blocks + block];
  }

 private:
  const RowLayout layout_;
  std::vector<BlockHeader> headers_;
  std::byte* rows_;

 public:
  BlockTable table;
};

class Server : public testing::Test {
 protected:
  static constexpr RowLayout kLayout = {.layers = 3, .kv_heads = 2, .head_dim = 16, .blocks = 6};

  Server() : pool_(kLayout), grant_(pool_.Grant(kOwner, kTokens)) {
    Start(1, {pool_.View()});
    offer_ = *server_->Open(0);
    raw_.emplace(offer_, kLayout.row_bytes());
  }
  void Start(uint32_t threads, std::vector<GatherServer::Pool> pools) {
    const size_t slot = GatherGeometry::Of(kLayout.row_bytes(), 0).slot_bytes();
    server_ = *GatherServer::Start({.layout = kLayout,
                                    .fingerprint = kTestFingerprint,
                                    .store_boot_id = 5,
                                    .threads = threads,
                                    .staging_bytes = kSlots * slot},
                                   std::move(pools));
  }
  // Puts a good request for one row of each KV head at the ring's end, without raising `posted`.
  void Prepare(uint32_t slot) {
    for (uint32_t i = 0; i < 2; ++i) {
      const RowRef ref = RefOf(grant_, i, kBlockTokens + 7);
      GatherIndex& index = view().indices(slot)[i];
      index.block = ref.block;
      index.generation = ref.generation;
      index.place = uint32_t{ref.token} << 16 | ref.kv_head;
    }
    entry().owner = kOwner;
    entry().layer = 1;
    entry().slot = slot;
    entry().rows = 2;
  }
  void Ring() {
    const uint64_t one = 1;
    ASSERT_EQ(write(offer_.doorbell_fd, &one, sizeof one), 8);
  }
  void PostPrepared() {
    view().header().posted = ++posted_;
    Ring();
  }
  // Posts what was prepared; the status that its completion has.
  GatherStatus Run(uint32_t slot) {
    PostPrepared();
    const uint64_t completion = MakeCompletion(posted_ - 1, GatherStatus{});
    EXPECT_TRUE(Eventually([&] { return view().completion(slot) >> 8 == completion >> 8; }));
    return static_cast<GatherStatus>(view().completion(slot) & 0xff);
  }
  template <typename Condition>
  static bool Eventually(Condition condition) {
    const auto limit = Soon();
    while (!condition()) {
      if (std::chrono::steady_clock::now() > limit) return false;
      std::this_thread::yield();
    }
    return true;
  }
  void ExpectAGoodRequestWorks(uint32_t slot) {
    Prepare(slot);
    ASSERT_EQ(Run(slot), GatherStatus::kDone);
    for (uint32_t i = 0; i < 2; ++i) {
      EXPECT_TRUE(RowIs(view().staging(slot) + i * kLayout.row_bytes(), kLayout.row_bytes(),
                        RowValue(1, kOwner, i, kBlockTokens + 7)));
    }
  }
  GatherView& view() { return raw_->view; }
  GatherEntry& entry() { return view().entry(posted_); }

  TestPool pool_;
  BlockGrant grant_;
  std::unique_ptr<GatherServer> server_;
  GatherServer::Offer offer_;
  std::optional<RawGather> raw_;
  uint64_t posted_ = 0;
};

TEST_F(Server, EveryAbsurdFieldIsRefusedAndNothingElseHappens) {
  struct Case {
    const char* name;
    GatherStatus status;  // 0: there is no place for an answer
    std::function<void(GatherEntry&, GatherIndex&)> break_it;
  };
  constexpr GatherStatus kEntry = GatherStatus::kBadEntry, kIndex = GatherStatus::kBadIndex,
                         kHeld = GatherStatus::kNotHeld, kValid = GatherStatus::kNotValid,
                         kSilent = GatherStatus(0);
  const std::vector<Case> cases = {
      {"no owner", kEntry, [](auto& entry, auto&) { entry.owner = 0; }},
      {"another owner", kHeld, [](auto& entry, auto&) { entry.owner = kOwner + 1; }},
      {"the layer after the last", kEntry, [](auto& entry, auto&) { entry.layer = 3; }},
      {"an absurd layer", kEntry, [](auto& entry, auto&) { entry.layer = ~0u; }},
      {"the slot after the last", kSilent, [](auto& entry, auto&) { entry.slot = kSlots; }},
      {"an absurd slot", kSilent, [](auto& entry, auto&) { entry.slot = ~0u; }},
      {"no rows", kEntry, [](auto& entry, auto&) { entry.rows = 0; }},
      {"one row too many", kEntry, [](auto& entry, auto&) { entry.rows = kMaxRequestRows + 1; }},
      {"absurdly many rows", kEntry, [](auto& entry, auto&) { entry.rows = ~0u; }},
      {"the block after the last", kIndex, [](auto&, auto& index) { index.block = 6; }},
      {"an absurd block", kIndex, [](auto&, auto& index) { index.block = ~0u; }},
      {"generation 0", kHeld, [](auto&, auto& index) { index.generation = 0; }},
      {"an absurd generation", kHeld, [](auto&, auto& index) { index.generation = ~0u; }},
      {"the KV head after the last", kIndex, [](auto&, auto& index) { index.place = 2; }},
      {"an absurd KV head", kIndex, [](auto&, auto& index) { index.place = 0xffff; }},
      {"the token after the last", kIndex, [](auto&, auto& index) { index.place = 64 << 16; }},
      {"an absurd token", kIndex, [](auto&, auto& index) { index.place = 0xffff << 16; }},
      {"a free block", kHeld, [](auto&, auto& index) { index.block = 5, index.generation = 0; }},
      {"a row that is not complete", kValid,
       [this](auto&, auto& index) {
         index.block = grant_.blocks[2];
         index.place = (kTokens % kBlockTokens) << 16;
       }},
  };
  const std::vector<std::byte> before(view().staging(0), view().staging(0) + kSlots * kPage);
  uint64_t refused = 0;
  for (const Case& one : cases) {
    for (uint32_t slot : {0u, kSlots - 1}) {
      Prepare(slot);
      one.break_it(entry(), view().indices(slot)[1]);
      ++refused;
      if (one.status == kSilent) {
        PostPrepared();
        EXPECT_TRUE(Eventually([&] { return server_->counters().refused == refused; })) << one.name;
      } else {
        EXPECT_EQ(Run(slot), one.status) << one.name;
      }
      EXPECT_EQ(server_->counters().refused, refused) << one.name;
    }
  }
  for (uint32_t slot = kSlots; slot < kMaxSlots; ++slot) EXPECT_EQ(view().completion(slot), 0u);
  EXPECT_EQ(std::memcmp(before.data(), view().staging(0), before.size()), 0);
  // What the store relies on does not lie in shared memory.
  std::memset(static_cast<void*>(&view().header()), 0xff, offsetof(GatherHeader, posted));
  ExpectAGoodRequestWorks(kSlots - 1);
  EXPECT_EQ(server_->counters().requests, 1u);
  EXPECT_EQ(server_->counters().rows, 2u);
}

TEST_F(Server, AWrongTableOrStampIsRefused) {
  const struct {
    const char* name;
    GatherStatus status;
    std::function<void(BlockHeader&, RowStamp&)> change;  // between the post and the copy
  } cases[] = {
      {"granted anew", GatherStatus::kNotHeld,
       [](auto& header, auto&) { header.tag = header.tag + (uint64_t{1} << 32); }},
      {"freed", GatherStatus::kNotHeld, [](auto& header, auto&) { header.tag = header.tag - 2; }},
      {"allocating", GatherStatus::kNotHeld,
       [](auto& header, auto&) { header.tag = header.tag - 1; }},
      {"owner", GatherStatus::kNotHeld, [](auto& header, auto&) { header.owner = 78; }},
      {"model", GatherStatus::kNotHeld, [](auto& header, auto&) { header.fingerprint = 1; }},
      {"position", GatherStatus::kNotValid, [](auto& header, auto&) { header.first_position = 0; }},
      {"stamp generation", GatherStatus::kNotValid,
       [](auto&, auto& stamp) { stamp.tag = MakeTag(9, kBlockTokens); }},
      {"stamp in change", GatherStatus::kNotValid, [](auto&, auto& stamp) { stamp.tag = 0; }},
      {"stamp owner", GatherStatus::kNotValid, [](auto&, auto& stamp) { stamp.owner = 78; }},
      {"stamp layer", GatherStatus::kNotValid, [](auto&, auto& stamp) { stamp.layer = 0; }},
      {"stamp position", GatherStatus::kNotValid,
       [](auto&, auto& stamp) { stamp.first_position = 0; }},
      {"stamp model", GatherStatus::kNotValid, [](auto&, auto& stamp) { stamp.fingerprint = 1; }},
      {"rows rolled back", GatherStatus::kNotValid,
       [](auto&, auto& stamp) { stamp.tag = MakeTag(TagGeneration(stamp.tag), 7); }},
  };
  for (const auto& one : cases) {
    Prepare(2);
    one.change(pool_.header(grant_.blocks[1]), pool_.stamp(1, grant_.blocks[1]));
    EXPECT_EQ(Run(2), one.status) << one.name;
    ASSERT_EQ(*pool_.table.Release(0, kOwner), 3u);
    grant_ = pool_.Grant(kOwner, kTokens);  // as good as new
    ExpectAGoodRequestWorks(2);
  }
}

TEST_F(Server, ABlockReleasedAfterThePostIsRefused) {
  Prepare(0);
  ASSERT_TRUE(pool_.table.Release(0, kOwner).ok());
  EXPECT_EQ(Run(0), GatherStatus::kNotHeld);
  Prepare(0);
  pool_.Grant(kOwner + 1, 6 * kBlockTokens);  // every block, at other generations
  EXPECT_EQ(Run(0), GatherStatus::kNotHeld);
}

TEST_F(Server, AnOverrunRingIsOneRefusal) {
  for (uint64_t jump : {uint64_t{kRingEntries} + 1, uint64_t{1} << 63, ~uint64_t{0}}) {
    const uint64_t refused = server_->counters().refused;
    posted_ += jump;
    view().header().posted = posted_;
    Ring();
    EXPECT_TRUE(Eventually([&] { return server_->counters().refused == refused + 1; }));
    ExpectAGoodRequestWorks(1);
  }
}

TEST_F(Server, GarbageIsRefusedWhileItChanges) {
  std::mt19937_64 random(7);
  const size_t words = view().geometry().staging_offset() / 4;
  auto* shared = reinterpret_cast<std::atomic<uint32_t>*>(raw_->memory.data());
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(700);
  for (int i = 0; std::chrono::steady_clock::now() < end; ++i) {
    if (i % 3 == 0) {  // anything, anywhere
      shared[random() % words] = static_cast<uint32_t>(random());
      continue;
    }
    // Nearly right, so that every check is come to; and changing after it was checked.
    const uint32_t slot = static_cast<uint32_t>(random() % kSlots);
    GatherIndex& index = view().indices(slot)[random() % kMaxRequestRows];
    index.block = static_cast<uint32_t>(random() % (kLayout.blocks + 2));
    index.generation = static_cast<uint32_t>(random() % 2);
    index.place = static_cast<uint32_t>(random() % 70) << 16 | (random() % 3);
    posted_ = view().header().posted.load();
    entry().owner = kOwner - 1 + random() % 3;
    entry().layer = static_cast<uint32_t>(random() % 4);
    entry().slot = slot;
    entry().rows = static_cast<uint32_t>(random() % (kMaxRequestRows + 8));
    view().header().posted = posted_ + random() % 4;
    if (i % 16 == 1) Ring();
  }
  EXPECT_GT(server_->counters().refused, 100u);
  // The next worker starts from nothing.
  raw_.reset();
  offer_ = *server_->Open(0);
  raw_.emplace(offer_, kLayout.row_bytes());
  posted_ = 0;
  ExpectAGoodRequestWorks(3);
}

TEST_F(Server, AWorkerThatFloodsDoesNotKeepAnotherWaiting) {
  TestPool quiet_pool(kLayout);
  const BlockGrant grant = quiet_pool.Grant(9, kBlockTokens);
  server_.reset();
  Start(1, {pool_.View(), quiet_pool.View()});
  offer_ = *server_->Open(0);
  raw_.emplace(offer_, kLayout.row_bytes());
  auto quiet =
      *GatherClient::Make(kLayout, 5, Duplicates(*server_->Open(1)), std::make_shared<UniqueFd>());
  for (; posted_ < kRingEntries; ++posted_) Prepare(0);
  posted_ = 0;
  for (uint32_t i = 0; i < kMaxRequestRows; ++i) {
    view().indices(0)[i].block = grant_.blocks[0];
    view().indices(0)[i].generation = grant_.generations[0];
  }
  for (uint64_t i = 0; i < kRingEntries; ++i) view().entry(i).rows = kMaxRequestRows;
  const auto served = [&] {
    const GatherServer::Counters counters = server_->counters();
    return counters.requests + counters.refused;
  };
  constexpr uint32_t kFlood = 800;
  std::vector<uint64_t> others_first;
  for (uint32_t i = 0; i < 21; ++i) {
    const uint64_t before = served();
    view().header().posted = posted_ += kFlood;
    Ring();
    const auto ticket = quiet->Post(2, 9, std::vector<RowRef>{RefOf(grant, 1, i)});
    ASSERT_TRUE(ticket);
    EXPECT_EQ(quiet->Wait(*ticket, Soon()), State::kDone);
    others_first.push_back(served() - before);
    quiet->Release(*ticket);
    ASSERT_TRUE(Eventually([&] { return served() == before + kFlood + 1; }));
  }
  // Unfair, every one of these would have waited for the whole flood. On a busy machine some do,
  // because this thread is let wait.
  EXPECT_LT(*std::min_element(others_first.begin(), others_first.end()), kFlood / 2);
}

TEST_F(Server, AWorkersEndDropsItsRequestsAndGivesEverythingBack) {
  const auto open_fds = [] {
    size_t count = 0;
    for (int fd = 0; fd < 512; ++fd) count += fcntl(fd, F_GETFD) != -1;
    return count;
  };
  const size_t attached = open_fds();
  server_->Close(0);
  server_->Close(0);  // nobody there: nothing
  EXPECT_EQ(open_fds(), attached - 3);
  Prepare(0);
  view().header().posted = ++posted_;  // into memory that nobody reads
  for (int i = 0; i < 50; ++i) {
    auto client = *GatherClient::Make(kLayout, 5, Duplicates(*server_->Open(0)),
                                      std::make_shared<UniqueFd>());
    for (uint32_t slot = 0; slot < kSlots; ++slot) {
      EXPECT_TRUE(client->Post(1, kOwner, std::vector<RowRef>(200, RefOf(grant_, 1, slot))));
    }
    client.reset();  // with its requests under way
    server_->Close(0);
  }
  EXPECT_TRUE(Eventually([&] { return open_fds() == attached - 3; }));
  EXPECT_EQ(server_->counters().refused, 0u);
  EXPECT_EQ(view().completion(0), 0u);
}

TEST_F(Server, IdleThreadsSleep) {
  ExpectAGoodRequestWorks(0);
  const auto cpu = [] {
    rusage usage = {};
    getrusage(RUSAGE_SELF, &usage);
    return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000 +
           (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1000;
  };
  const auto before = cpu();
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  EXPECT_LT(cpu() - before, 100);
}

TEST_F(Server, StagingForNoRequestIsRefused) {
  const absl::Status status =
      GatherServer::Start({.layout = kLayout, .staging_bytes = 100}, {pool_.View()}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
}

// P3 under load: blocks change hands as fast as they can while requests for them, true ones and
// outdated ones, are copied. Rows are large, so that a copy takes longer than a change of hands.
TEST(GatherRace, NeverAnotherOwnersRow) {
  constexpr RowLayout layout = {.layers = 1, .kv_heads = 1, .head_dim = 256, .blocks = 4};
  constexpr uint32_t kAll = 4 * kBlockTokens;
  TestPool pool(layout);
  auto server = *GatherServer::Start({.layout = layout,
                                      .fingerprint = kTestFingerprint,
                                      .store_boot_id = 5,
                                      .threads = 2,
                                      .staging_bytes = size_t{4} << 20},
                                     {pool.View()});
  auto client =
      *GatherClient::Make(layout, 5, Duplicates(*server->Open(0)), std::make_shared<UniqueFd>());
  std::mutex mutex;
  std::pair<uint64_t, BlockGrant> current = {1, pool.Grant(1, kAll)};  // guarded by mutex
  std::atomic<bool> stop = false;
  std::thread hands([&] {
    for (uint64_t owner = 2; !stop; ++owner) {
      ASSERT_TRUE(pool.table.Release(0, owner - 1).ok());
      BlockGrant grant = pool.Grant(owner, kAll);
      {
        std::lock_guard lock(mutex);
        current = {owner, std::move(grant)};
      }
      if (owner % 2) std::this_thread::sleep_for(std::chrono::microseconds(owner % 997));
    }
  });
  std::mt19937 random(3);
  uint64_t done = 0, refused = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(2);
  while (std::chrono::steady_clock::now() < end) {
    uint64_t owner;
    BlockGrant grant;
    {
      std::lock_guard lock(mutex);
      std::tie(owner, grant) = current;
    }
    std::vector<uint32_t> positions;
    std::vector<RowRef> refs;
    for (uint32_t i = 0; i < client->max_rows(); ++i) {
      positions.push_back(static_cast<uint32_t>(random() % kAll));
      refs.push_back(RefOf(grant, 0, positions.back()));
    }
    const auto ticket = client->Post(0, owner, refs);
    ASSERT_TRUE(ticket);
    const State state = client->Wait(*ticket, Soon());
    ASSERT_TRUE(state == State::kDone || state == State::kRefused);
    (state == State::kDone ? done : refused) += 1;
    for (uint32_t i = 0; state == State::kDone && i < refs.size(); ++i) {
      ASSERT_TRUE(RowIs(client->Rows(*ticket) + i * layout.row_bytes(), layout.row_bytes(),
                        RowValue(0, owner, 0, positions[i])))
          << "row " << i << " after " << done;
    }
    client->Release(*ticket);
  }
  stop = true;
  hands.join();
  EXPECT_GT(done, 10u);
  EXPECT_GT(refused, 10u);
}

}  // namespace
}  // namespace sparsekv::kv_store
