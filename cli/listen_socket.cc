#include "cli/listen_socket.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace sparsekv {

namespace {

absl::StatusOr<std::string> BoundAddress(int fd, const std::string& host) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    return absl::ErrnoToStatus(errno, "getsockname");
  }
  const uint16_t port = address.ss_family == AF_INET6
                            ? reinterpret_cast<sockaddr_in6*>(&address)->sin6_port
                            : reinterpret_cast<sockaddr_in*>(&address)->sin_port;
  return absl::StrCat(host, ":", ntohs(port));
}

}  // namespace

absl::StatusOr<ListenSocket> Listen(const std::string& option, const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == address.size()) {
    return absl::InvalidArgumentError(absl::StrCat(option, ": \"", address, "\" is not HOST:PORT"));
  }
  const std::string shown_host = address.substr(0, colon);
  std::string host = shown_host;
  if (host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);

  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV | (host == "localhost" ? 0 : AI_NUMERICHOST);
  hints.ai_family = host == "localhost" ? AF_INET : AF_UNSPEC;
  addrinfo* found = nullptr;
  if (int error = getaddrinfo(host.c_str(), address.c_str() + colon + 1, &hints, &found)) {
    return absl::InvalidArgumentError(
        absl::StrCat(option, ": \"", address, "\": ", gai_strerror(error)));
  }
  const int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  int error = 0;
  if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
      bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, SOMAXCONN) != 0) {
    error = errno;
  }
  freeaddrinfo(found);
  if (error != 0) {
    if (fd >= 0) close(fd);
    return absl::FailedPreconditionError(
        absl::StrCat(option, ": cannot listen on ", address, ": ", std::strerror(error)));
  }
  auto bound = BoundAddress(fd, shown_host);
  if (!bound.ok()) return bound.status();
  return ListenSocket{fd, *std::move(bound)};
}

}  // namespace sparsekv
