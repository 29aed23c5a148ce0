#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "coordinator/fd_acceptor.h"

namespace sparsekv {

struct HttpReply {
  unsigned status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
};

// A small HTTP/1.1 server for GET on a few fixed paths. Strand only, handlers included. Bounded:
// header bytes, bodies (none), idle time and connections. Destroyed after the executor's context
// has stopped.
class HttpServer {
 public:
  using Routes = std::map<std::string, std::function<HttpReply()>, std::less<>>;

  // Takes `listen_fd`, a listening TCP socket.
  HttpServer(boost::asio::any_io_executor strand, int listen_fd, Routes routes);
  ~HttpServer();

  void Start() { acceptor_.Start(); }
  // Accepts no more and closes what is open.
  void Stop();

 private:
  struct Shared;
  class Session;
  void OnConnection(int fd);

  const boost::asio::any_io_executor strand_;
  const std::shared_ptr<Shared> shared_;
  FdAcceptor acceptor_;
};

}  // namespace sparsekv
