#include "kv_store/attach_server.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <chrono>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/unix_socket.h"
#include "kv_store/client.h"
#include "kv_store/segment.h"

namespace sparsekv::kv_store {
namespace {

constexpr uint32_t kPools = 2;
constexpr RowLayout kLayout = {.layers = 2, .kv_heads = 1, .head_dim = 16, .blocks = 4};

// A store's attach side with its own I/O thread, restartable over the same memfds.
class StoreSide {
 public:
  explicit StoreSide(std::string path) : path_(std::move(path)) {
    NewSegment();
    Start();
  }
  ~StoreSide() { Stop(); }

  void NewSegment() {
    meta_ = *CreateMemfd("meta");
    rows_.clear();
    for (uint32_t i = 0; i < kPools; ++i) rows_.push_back(*CreateMemfd("rows"));
  }
  void Start() {
    std::vector<UniqueFd> rows;
    for (const UniqueFd& fd : rows_) rows.emplace_back(dup(fd.get()));
    segment_.emplace(*Segment::Open({.layout = kLayout, .fingerprint = 0xabc},
                                    UniqueFd(dup(meta_.get())), std::move(rows), ++boot_id_,
                                    size_t{1} << 40));
    io_.emplace();
    table_.emplace(segment_->blocks(), BlockTable::Config{.pools = kPools,
                                                          .blocks = kLayout.blocks,
                                                          .fingerprint = 0xabc,
                                                          .store_boot_id = boot_id_});
    server_ = *AttachServer::Listen(*io_, path_,
                                    {.store_boot_id = boot_id_,
                                     .segment_id = segment_->facts().segment_id,
                                     .meta_fd = segment_->meta_read_only_fd(),
                                     .rows_fds = {segment_->rows_fd(0), segment_->rows_fd(1)}});
    thread_ = std::thread([this] {
      auto guard = boost::asio::make_work_guard(*io_);
      io_->run();
    });
  }
  void Stop() {
    if (!thread_.joinable()) return;
    io_->stop();
    thread_.join();
    server_.reset();
    io_.reset();
    segment_.reset();
  }
  // Runs on the I/O thread and returns its result.
  template <typename F>
  auto On(F f) {
    std::packaged_task<decltype(f())()> task(std::move(f));
    auto result = task.get_future();
    boost::asio::post(*io_, [&task] { task(); });
    return result.get();
  }
  size_t attached() {
    return On([this] { return server_->attached(); });
  }
  BlockGrant Allocate(uint32_t pool, uint64_t owner, uint32_t tokens) {
    return On([&] { return *table_->Allocate(pool, owner, tokens); });
  }
  void Release(uint32_t pool, uint64_t owner) {
    On([&] { return table_->Release(pool, owner).ok(); });
  }
  uint64_t boot_id() const { return boot_id_; }
  BlockHeader& header(uint32_t pool, uint32_t block) {
    return segment_->blocks()[pool * kLayout.blocks + block];
  }

 private:
  const std::string path_;
  UniqueFd meta_;
  std::vector<UniqueFd> rows_;
  uint64_t boot_id_ = 0;
  std::optional<Segment> segment_;
  std::optional<BlockTable> table_;
  std::optional<boost::asio::io_context> io_;
  std::unique_ptr<AttachServer> server_;
  std::thread thread_;
};

class Attach : public testing::Test {
 protected:
  Attach() {
    char folder[] = "/tmp/sparsekv-attach-XXXXXX";
    spdlog::set_level(spdlog::level::err);
    folder_ = mkdtemp(folder);
    path_ = folder_ + "/attach";
    store_.emplace(path_);
  }
  ~Attach() override {
    store_.reset();
    EXPECT_EQ(rmdir(folder_.c_str()), 0);  // the server removed its socket
  }
  template <typename Condition>
  static bool Eventually(Condition condition) {
    for (int i = 0; i < 1000; ++i) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return false;
  }
  // Sends raw bytes as a hello; the reply's status, or nothing where the store just hung up.
  std::optional<AttachReply> Say(const void* data, size_t bytes) {
    UniqueFd socket = *ConnectPackets(path_, 1000);
    EXPECT_TRUE(SendPacket(socket.get(), data, bytes, {}).ok());
    AttachReply reply = {};
    absl::StatusOr<Packet> packet = ReceivePacket(socket.get(), &reply, sizeof reply, 5000);
    if (!packet.ok()) return std::nullopt;
    EXPECT_EQ(packet->bytes, sizeof reply);
    EXPECT_TRUE(packet->fds.empty());
    EXPECT_TRUE(Eventually([&] { return PeerHungUp(socket.get()); }));  // refused: hung up
    return reply;
  }

  std::string folder_;
  std::string path_;
  std::optional<StoreSide> store_;
};

TEST_F(Attach, MapsMetaAndTheRowsOfItsPool) {
  auto one = *SegmentClient::Attach(path_, 1, 11);
  auto zero = *SegmentClient::Attach(path_, 0, 10);
  EXPECT_EQ(one->layout(), kLayout);
  EXPECT_EQ(one->fingerprint(), 0xabcu);
  EXPECT_EQ(one->store_boot_id(), store_->boot_id());
  EXPECT_EQ(store_->attached(), 2u);

  const BlockGrant grant = store_->Allocate(1, 77, 2 * kBlockTokens);
  EXPECT_TRUE(one->CheckBlock(grant.blocks[1], 77, grant.generations[1], kBlockTokens).ok());
  EXPECT_TRUE(
      absl::IsDataLoss(zero->CheckBlock(grant.blocks[1], 77, grant.generations[1], kBlockTokens)));
  one->rows()[0] = std::byte{9};
  EXPECT_EQ(zero->rows()[0], std::byte{0});
}

TEST_F(Attach, CheckBlockSeesEveryWrongFieldOfTheTable) {
  auto client = *SegmentClient::Attach(path_, 1, 11);
  const struct {
    const char* field;
    void (*corrupt)(BlockHeader&);
  } cases[] = {
      {"generation", [](BlockHeader& header) { header.tag = header.tag + (uint64_t{1} << 32); }},
      {"state", [](BlockHeader& header) { header.tag = header.tag - 1; }},
      {"state", [](BlockHeader& header) { header.tag = header.tag + 1; }},
      {"owner", [](BlockHeader& header) { header.owner = 78; }},
      {"first position", [](BlockHeader& header) { header.first_position = 64; }},
      {"fingerprint", [](BlockHeader& header) { header.fingerprint = 1; }},
  };
  for (const auto& test : cases) {
    const BlockGrant grant = store_->Allocate(1, 77, kBlockTokens);
    const auto check = [&] {
      return client->CheckBlock(grant.blocks[0], 77, grant.generations[0], 0);
    };
    ASSERT_TRUE(check().ok());
    test.corrupt(store_->header(1, grant.blocks[0]));
    EXPECT_TRUE(absl::IsDataLoss(check())) << test.field;
    EXPECT_NE(check().ToString().find(test.field), std::string::npos) << check();
    store_->Release(1, 77);
  }
}

TEST_F(Attach, BadHellosAreRefusedWithTheirReason) {
  const AttachHello good = {
      .magic = kAttachMagic, .version = kAttachVersion, .pool = 0, .worker_boot_id = 1};
  const auto status = [&](AttachHello hello, size_t bytes = sizeof(AttachHello)) {
    std::optional<AttachReply> reply = Say(&hello, bytes);
    EXPECT_TRUE(reply && reply->magic == kAttachMagic && reply->version == kAttachVersion);
    return static_cast<AttachStatus>(reply ? reply->status : 0);
  };
  AttachHello hello = good;
  hello.magic ^= 1;
  EXPECT_EQ(status(hello), AttachStatus::kBadHello);
  hello = good;
  hello.version = kAttachVersion + 1;
  EXPECT_EQ(status(hello), AttachStatus::kBadVersion);
  EXPECT_EQ(status(hello, 16), AttachStatus::kBadVersion);
  hello = good;
  hello.pool = kPools;
  EXPECT_EQ(status(hello), AttachStatus::kBadPool);
  hello = good;
  hello.worker_boot_id = 0;
  EXPECT_EQ(status(hello), AttachStatus::kBadHello);
  EXPECT_EQ(status(good, sizeof good - 1), AttachStatus::kBadHello);
  EXPECT_EQ(status(good, 1), AttachStatus::kBadHello);
  const std::string longer(100, 'x');
  EXPECT_EQ(Say(longer.data(), longer.size())->status,
            static_cast<uint32_t>(AttachStatus::kBadHello));
  EXPECT_EQ(SegmentClient::Attach(path_, kPools, 1).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(store_->attached(), 0u);
}

TEST_F(Attach, ASecondWorkerWaitsForTheFirstOnesEnd) {
  auto first = *SegmentClient::Attach(path_, 0, 11);
  absl::Status refused = SegmentClient::Attach(path_, 0, 12).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(refused.ToString().find("000000000000000b"), std::string::npos) << refused;
  EXPECT_TRUE(first->store_alive());
  first.reset();
  // At once: the kernel's word counts, whether or not the store has seen the hang-up.
  EXPECT_TRUE(SegmentClient::Attach(path_, 0, 12).ok());
}

TEST_F(Attach, TheSameWorkerMayConnectAgain) {
  auto first = *SegmentClient::Attach(path_, 0, 11);
  auto again = *SegmentClient::Attach(path_, 0, 11);
  EXPECT_TRUE(Eventually([&] { return !first->store_alive(); }));
  EXPECT_TRUE(again->store_alive());
  EXPECT_EQ(store_->attached(), 1u);
}

TEST_F(Attach, HangUpIsSeenOnBothSides) {
  auto client = *SegmentClient::Attach(path_, 0, 11);
  EXPECT_EQ(store_->attached(), 1u);
  client.reset();
  EXPECT_TRUE(Eventually([&] { return store_->attached() == 0; }));
  client = *SegmentClient::Attach(path_, 0, 11);
  EXPECT_TRUE(client->store_alive());
  store_->Stop();
  EXPECT_FALSE(client->store_alive());
  EXPECT_EQ(client->Reattach().code(), absl::StatusCode::kUnavailable);
  client->rows()[0] = std::byte{1};  // the memory stays
}

TEST_F(Attach, AWorkerGoesOnWithARestartedStore) {
  auto client = *SegmentClient::Attach(path_, 0, 11);
  const BlockGrant grant = store_->Allocate(0, 77, kBlockTokens);
  client->StampRows(1, grant.blocks[0], 77, grant.generations[0], 0);
  client->PublishRows(1, grant.blocks[0], 5);
  const uint64_t before = client->store_boot_id();
  store_->Stop();
  store_->Start();
  ASSERT_TRUE(client->Reattach().ok());
  EXPECT_TRUE(client->store_alive());
  EXPECT_NE(client->store_boot_id(), before);
  EXPECT_EQ(client->store_boot_id(), store_->boot_id());
  EXPECT_TRUE(client->CheckBlock(grant.blocks[0], 77, grant.generations[0], 0).ok());
  EXPECT_TRUE(client->CheckRows(1, grant.blocks[0], 77, grant.generations[0], 0, 5).ok());
}

TEST_F(Attach, AnotherSegmentIsNotTaken) {
  auto client = *SegmentClient::Attach(path_, 0, 11);
  store_->Stop();
  store_->NewSegment();
  store_->Start();
  EXPECT_EQ(client->Reattach().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(client->store_alive());
}

TEST_F(Attach, DescriptorsReturnToWhereTheyWere) {
  const auto open_fds = [] {
    size_t count = 0;
    for (int fd = 0; fd < 512; ++fd) count += fcntl(fd, F_GETFD) != -1;
    return count;
  };
  const size_t before = open_fds();
  for (int i = 0; i < 20; ++i) {
    auto client = *SegmentClient::Attach(path_, 0, 11 + i);
    EXPECT_EQ(open_fds(),
              before + 2);  // the connection's two ends; the memfds are mapped, not held
  }
  EXPECT_TRUE(Eventually([&] { return open_fds() == before; }));
}

TEST_F(Attach, SilentConnectionsAreBounded) {
  std::vector<UniqueFd> silent;
  for (int i = 0; i < 64; ++i) silent.push_back(*ConnectPackets(path_, 1000));
  EXPECT_FALSE(SegmentClient::Attach(path_, 0, 11).ok());
  silent.clear();
  EXPECT_TRUE(Eventually([&] { return SegmentClient::Attach(path_, 0, 11).ok(); }));
}

}  // namespace
}  // namespace sparsekv::kv_store
