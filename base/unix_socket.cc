#include "base/unix_socket.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace sparsekv {
namespace {

absl::Status ErrnoStatus(const std::string& what) { return absl::ErrnoToStatus(errno, what); }

absl::StatusOr<sockaddr_un> Address(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return absl::InvalidArgumentError(absl::StrCat("socket path \"", path, "\" must have 1 to ",
                                                   sizeof address.sun_path - 1, " bytes"));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

absl::Status RemoveStaleSocket(const std::string& path) {
  struct stat info = {};
  if (lstat(path.c_str(), &info) != 0) {
    return errno == ENOENT ? absl::OkStatus() : ErrnoStatus(path);
  }
  if (!S_ISSOCK(info.st_mode)) {
    return absl::AlreadyExistsError(absl::StrCat(path, " is there and is not a socket"));
  }
  if (unlink(path.c_str()) != 0 && errno != ENOENT) {
    return ErrnoStatus(absl::StrCat("removing ", path));
  }
  return absl::OkStatus();
}

std::vector<UniqueFd> TakeDescriptors(msghdr& message) {
  std::vector<UniqueFd> fds;
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part; part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
      fds.emplace_back(fd);
    }
  }
  return fds;
}

}  // namespace

absl::StatusOr<UniqueFd> ListenPackets(const std::string& path) {
  absl::StatusOr<sockaddr_un> address = Address(path);
  if (!address.ok()) return address.status();
  if (absl::Status status = RemoveStaleSocket(path); !status.ok()) return status;
  UniqueFd socket_fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket_fd) return ErrnoStatus("socket");
  // The mode of the file that bind makes is the socket's own, under the umask; nobody can connect
  // before listen, so the window between the two calls opens nothing.
  if (bind(socket_fd.get(), reinterpret_cast<sockaddr*>(&*address), sizeof *address) != 0 ||
      chmod(path.c_str(), 0600) != 0 || listen(socket_fd.get(), SOMAXCONN) != 0) {
    return ErrnoStatus(absl::StrCat("listening on ", path));
  }
  return socket_fd;
}

absl::StatusOr<UniqueFd> ConnectPackets(const std::string& path, int timeout_ms) {
  absl::StatusOr<sockaddr_un> address = Address(path);
  if (!address.ok()) return address.status();
  UniqueFd socket_fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket_fd) return ErrnoStatus("socket");
  // connect waits for room in the listener's queue, and its limit is the one for sending.
  const timeval limit = {.tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000};
  if (setsockopt(socket_fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) != 0) {
    return ErrnoStatus("SO_SNDTIMEO");
  }
  int result = 0;
  do {
    result = connect(socket_fd.get(), reinterpret_cast<sockaddr*>(&*address), sizeof *address);
  } while (result != 0 && errno == EINTR);
  if (result != 0) {
    return absl::UnavailableError(absl::StrCat("connecting to ", path, ": ", std::strerror(errno)));
  }
  return socket_fd;
}

absl::StatusOr<uid_t> PeerUser(int socket) {
  ucred credentials = {};
  socklen_t bytes = sizeof credentials;
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &bytes) != 0) {
    return ErrnoStatus("SO_PEERCRED");
  }
  return credentials.uid;
}

absl::Status SendPacket(int socket, const void* data, size_t bytes, const std::vector<int>& fds) {
  CHECK_GT(bytes, 0u);  // a message of no bytes looks like a hang-up
  CHECK_LE(fds.size(), kMaxPassedFds);
  iovec part = {.iov_base = const_cast<void*>(data), .iov_len = bytes};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxPassedFds * sizeof(int))] = {};
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size() * sizeof(int));
  }
  ssize_t sent = 0;
  do {
    sent = sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (sent < 0 && errno == EINTR);
  if (sent < 0) return absl::UnavailableError(absl::StrCat("sending: ", std::strerror(errno)));
  CHECK_EQ(static_cast<size_t>(sent), bytes);
  return absl::OkStatus();
}

absl::StatusOr<Packet> ReceivePacket(int socket, void* data, size_t capacity, int timeout_ms) {
  pollfd waiting = {.fd = socket, .events = POLLIN, .revents = 0};
  int ready = 0;
  do {
    ready = poll(&waiting, 1, timeout_ms);
  } while (ready < 0 && errno == EINTR);
  if (ready < 0) return ErrnoStatus("poll");
  if (ready == 0) return absl::DeadlineExceededError("no message in time");

  iovec part = {.iov_base = data, .iov_len = capacity};
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxPassedFds * sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t received = 0;
  do {
    received = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  } while (received < 0 && errno == EINTR);
  if (received < 0)
    return absl::UnavailableError(absl::StrCat("receiving: ", std::strerror(errno)));
  Packet packet = {.bytes = static_cast<size_t>(received), .fds = TakeDescriptors(message)};
  if (received == 0) return absl::UnavailableError("the peer hung up");
  if (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
    return absl::DataLossError("a message was cut short");
  }
  return packet;
}

bool PeerHungUp(int socket) {
  pollfd state = {.fd = socket, .events = POLLRDHUP, .revents = 0};
  int ready = 0;
  do {
    ready = poll(&state, 1, 0);
  } while (ready < 0 && errno == EINTR);
  return ready < 0 || (state.revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) != 0;
}

}  // namespace sparsekv
