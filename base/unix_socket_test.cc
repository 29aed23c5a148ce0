#include "base/unix_socket.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <string>

namespace sparsekv {
namespace {

class UnixSocket : public testing::Test {
 protected:
  UnixSocket() {
    char folder[] = "/tmp/sparsekv-socket-XXXXXX";
    folder_ = mkdtemp(folder);
    path_ = folder_ + "/socket";
  }
  ~UnixSocket() override {
    unlink(path_.c_str());
    rmdir(folder_.c_str());
  }
  // Both ends of a connection: {server's, client's}.
  std::array<UniqueFd, 2> Connect() {
    UniqueFd listener = *ListenPackets(path_);
    UniqueFd client = *ConnectPackets(path_, 1000);
    return {UniqueFd(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC)), std::move(client)};
  }
  size_t OpenFds() {
    size_t count = 0;
    for (int fd = 0; fd < 256; ++fd) count += fcntl(fd, F_GETFD) != -1;
    return count;
  }

  std::string folder_;
  std::string path_;
};

TEST_F(UnixSocket, FileIsForItsUserOnly) {
  UniqueFd listener = *ListenPackets(path_);
  struct stat info = {};
  ASSERT_EQ(stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST_F(UnixSocket, ReplacesAStaleSocketButNoOtherFile) {
  { UniqueFd dead = *ListenPackets(path_); }
  EXPECT_EQ(ConnectPackets(path_, 100).status().code(), absl::StatusCode::kUnavailable);
  { EXPECT_TRUE(ListenPackets(path_).ok()); }
  unlink(path_.c_str());
  UniqueFd file(open(path_.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  EXPECT_EQ(ListenPackets(path_).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(access(path_.c_str(), F_OK), 0);
}

TEST_F(UnixSocket, PathsOfBadLengthAreRefused) {
  EXPECT_EQ(ListenPackets("").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ListenPackets("/" + std::string(200, 'x')).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ConnectPackets("/" + std::string(200, 'x'), 100).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(UnixSocket, NobodyThereIsUnavailable) {
  EXPECT_EQ(ConnectPackets(path_, 100).status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(UnixSocket, KnowsThePeersUser) {
  auto [server, client] = Connect();
  EXPECT_EQ(*PeerUser(server.get()), geteuid());
  EXPECT_EQ(*PeerUser(client.get()), geteuid());
}

TEST_F(UnixSocket, MessagesKeepTheirBoundsAndDescriptors) {
  auto [server, client] = Connect();
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  UniqueFd read_end(ends[0]), write_end(ends[1]);
  ASSERT_TRUE(SendPacket(server.get(), "one", 3, {read_end.get(), write_end.get()}).ok());
  ASSERT_TRUE(SendPacket(server.get(), "second", 6, {}).ok());

  char text[16] = {};
  Packet first = *ReceivePacket(client.get(), text, sizeof text, 1000);
  EXPECT_EQ(std::string(text, first.bytes), "one");
  ASSERT_EQ(first.fds.size(), 2u);
  EXPECT_EQ(fcntl(first.fds[0].get(), F_GETFD), FD_CLOEXEC);
  ASSERT_EQ(write(first.fds[1].get(), "x", 1), 1);
  char byte = 0;
  EXPECT_EQ(read(read_end.get(), &byte, 1), 1);
  EXPECT_EQ(byte, 'x');

  Packet second = *ReceivePacket(client.get(), text, sizeof text, 1000);
  EXPECT_EQ(std::string(text, second.bytes), "second");
  EXPECT_TRUE(second.fds.empty());
}

TEST_F(UnixSocket, SilenceIsDeadlineAndHangUpUnavailable) {
  auto [server, client] = Connect();
  char text[4];
  EXPECT_EQ(ReceivePacket(client.get(), text, sizeof text, 10).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_FALSE(PeerHungUp(client.get()));
  server = UniqueFd();
  EXPECT_TRUE(PeerHungUp(client.get()));
  EXPECT_EQ(ReceivePacket(client.get(), text, sizeof text, 1000).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(SendPacket(client.get(), "x", 1, {}).code(), absl::StatusCode::kUnavailable);
}

TEST_F(UnixSocket, APendingMessageIsNoHangUp) {
  auto [server, client] = Connect();
  ASSERT_TRUE(SendPacket(server.get(), "x", 1, {}).ok());
  EXPECT_FALSE(PeerHungUp(client.get()));
}

TEST_F(UnixSocket, ATooLongMessageIsLostWithItsDescriptors) {
  auto [server, client] = Connect();
  const size_t before = OpenFds();
  ASSERT_TRUE(SendPacket(server.get(), "too long", 8, {server.get()}).ok());
  char text[4];
  EXPECT_EQ(ReceivePacket(client.get(), text, sizeof text, 1000).status().code(),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(OpenFds(), before);
}

}  // namespace
}  // namespace sparsekv
