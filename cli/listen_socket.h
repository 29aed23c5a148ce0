#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace sparsekv {

// A TCP socket that listens, held by the parent so that clients find the port whatever its children
// do.
struct ListenSocket {
  int fd = -1;
  std::string address;  // HOST:PORT as bound, the port chosen where 0 was asked
};

// `address`: HOST:PORT or [V6]:PORT; HOST is a numeric address or "localhost". `option` names it in
// errors. Port in use: FAILED_PRECONDITION with the address.
absl::StatusOr<ListenSocket> Listen(const std::string& option, const std::string& address);

}  // namespace sparsekv
