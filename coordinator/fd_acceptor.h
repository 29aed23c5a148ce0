#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <functional>

#include "absl/status/status.h"

namespace sparsekv {

// OK when `fd` is a listening TCP socket.
absl::Status CheckListening(int fd);

// Accepts connections from an inherited listening socket. The parent keeps the socket, so that a
// successor has the same port and what is not accepted yet waits for it. Strand only; destroyed
// after the executor's context has stopped.
class FdAcceptor {
 public:
  // Takes `listen_fd`. `on_connection` owns the descriptor that it gets: non-blocking,
  // close-on-exec, no delay.
  FdAcceptor(boost::asio::any_io_executor strand, int listen_fd,
             std::function<void(int fd)> on_connection);

  void Start() { Wait(); }
  void Stop();

 private:
  void Wait();
  void AcceptAll();
  void Pause(int error);

  boost::asio::posix::stream_descriptor listener_;
  boost::asio::steady_timer pause_;
  const std::function<void(int fd)> on_connection_;
};

}  // namespace sparsekv
