#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <cstdint>
#include <future>
#include <string>
#include <thread>
#include <utility>

#include "base/check.h"

namespace sparsekv {

// For tests: a listening socket as a parent would hand it down.
class LoopbackListener {
 public:
  LoopbackListener() : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    CHECK_EQ(bind(fd_, generic, size), 0);
    CHECK_EQ(listen(fd_, 64), 0);
    CHECK_EQ(getsockname(fd_, generic, &size), 0);
    port_ = ntohs(address.sin_port);
  }
  ~LoopbackListener() { close(fd_); }

  int Inherit() const { return dup(fd_); }  // what one child gets
  uint16_t port() const { return port_; }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

 private:
  const int fd_;
  uint16_t port_ = 0;
};

// For tests: the strand, on its own thread until Join.
class StrandThread {
 public:
  StrandThread() : thread_([this] { io_.run(); }) {}
  ~StrandThread() { Join(); }

  boost::asio::io_context::executor_type executor() { return io_.get_executor(); }

  // Runs `work` on the strand and returns what it returned.
  template <typename Work>
  auto Do(Work work) {
    std::packaged_task<decltype(work())()> task(std::move(work));
    auto result = task.get_future();
    boost::asio::post(io_, [&task] { task(); });
    return result.get();
  }
  void Join() {
    if (!thread_.joinable()) return;
    io_.stop();
    thread_.join();
  }

 private:
  boost::asio::io_context io_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_{
      io_.get_executor()};
  std::thread thread_;
};

}  // namespace sparsekv
