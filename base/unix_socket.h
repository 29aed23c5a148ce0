#pragma once

#include <sys/types.h>

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/shared_memory.h"

// Unix sockets of packets (SOCK_SEQPACKET): a message arrives whole or not at all, descriptors
// travel with it (SCM_RIGHTS), and the kernel tells each side when the other is gone. Any thread
// may call; one descriptor is used by one thread at a time.
namespace sparsekv {

inline constexpr size_t kMaxPassedFds = 8;  // in one message

// Binds and listens, non-blocking, close-on-exec, mode 0600. A socket file that is there already is
// taken for a dead process's and replaced; any other file is left alone (ALREADY_EXISTS).
absl::StatusOr<UniqueFd> ListenPackets(const std::string& path);

// Connects, blocking. A listener that does not take the connection within `timeout_ms` is
// UNAVAILABLE, as is one that is not there.
absl::StatusOr<UniqueFd> ConnectPackets(const std::string& path, int timeout_ms);

// The user that the process at the other end had when it connected or listened.
absl::StatusOr<uid_t> PeerUser(int socket);

// Sends one message with at most kMaxPassedFds descriptors, which stay the caller's. Never raises
// SIGPIPE and never waits: a full buffer is UNAVAILABLE.
absl::Status SendPacket(int socket, const void* data, size_t bytes, const std::vector<int>& fds);

// A received message: `bytes` were written to the buffer. Descriptors are close-on-exec.
struct Packet {
  size_t bytes = 0;
  std::vector<UniqueFd> fds;
};

// Receives one message, waiting at most `timeout_ms` for it (0: what is there now). UNAVAILABLE:
// the peer hung up; DEADLINE_EXCEEDED: nothing came; DATA_LOSS: longer than `capacity`, or with
// more descriptors than kMaxPassedFds or than this process may open (all of them are closed then).
absl::StatusOr<Packet> ReceivePacket(int socket, void* data, size_t capacity, int timeout_ms);

// Whether the peer has hung up or reset the connection. Takes nothing from the socket, does not
// wait.
bool PeerHungUp(int socket);

}  // namespace sparsekv
