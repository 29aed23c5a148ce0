#include "coordinator/fd_acceptor.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"

namespace sparsekv {

namespace {

constexpr int kBurst = 64;  // connections taken before the strand does something else
constexpr std::chrono::milliseconds kPause{100};

// The connection died in the backlog, or accept was disturbed: the next one may be fine.
bool IsOfThisConnection(int error) {
  switch (error) {
    case EINTR:
    case ECONNABORTED:
    case EPERM:
    case EPROTO:
    case ENETDOWN:
    case ENOPROTOOPT:
    case EHOSTDOWN:
    case ENONET:
    case EHOSTUNREACH:
    case EOPNOTSUPP:
    case ENETUNREACH:
      return true;
    default:
      return false;
  }
}

}  // namespace

absl::Status CheckListening(int fd) {
  int listening = 0, type = 0;
  socklen_t size = sizeof listening;
  if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) != 0) {
    return absl::InvalidArgumentError(absl::StrCat(fd, ": ", std::strerror(errno)));
  }
  size = sizeof type;
  if (!listening || getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) != 0 || type != SOCK_STREAM) {
    return absl::InvalidArgumentError(absl::StrCat(fd, " is not a listening socket"));
  }
  return absl::OkStatus();
}

FdAcceptor::FdAcceptor(boost::asio::any_io_executor strand, int listen_fd,
                       std::function<void(int fd)> on_connection)
    : listener_(strand, listen_fd), pause_(strand), on_connection_(std::move(on_connection)) {
  listener_.non_blocking(true);
}

void FdAcceptor::Stop() {
  pause_.cancel();
  listener_.close();
}

void FdAcceptor::Wait() {
  listener_.async_wait(boost::asio::posix::stream_descriptor::wait_read,
                       [this](boost::system::error_code error) {
                         if (!error && listener_.is_open()) AcceptAll();
                       });
}

void FdAcceptor::AcceptAll() {
  for (int i = 0; i < kBurst; ++i) {
    const int fd =
        accept4(listener_.native_handle(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
      const int on = 1;
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      on_connection_(fd);
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      break;
    } else if (!IsOfThisConnection(errno)) {
      return Pause(errno);
    }
  }
  Wait();
}

// Out of descriptors or memory: the connection stays in the backlog, and the descriptor stays
// readable, so waiting for it alone would spin.
void FdAcceptor::Pause(int error) {
  spdlog::warn("accept: {}; again in {} ms", std::strerror(error), kPause.count());
  pause_.expires_after(kPause);
  pause_.async_wait([this](boost::system::error_code cancelled) {
    if (!cancelled && listener_.is_open()) AcceptAll();
  });
}

}  // namespace sparsekv
