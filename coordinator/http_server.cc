#include "coordinator/http_server.h"

#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <optional>
#include <set>
#include <utility>

namespace sparsekv {

namespace http = boost::beast::http;
using boost::asio::ip::tcp;

namespace {

constexpr size_t kMaxHeaderBytes = 8192;
constexpr size_t kMaxConnections = 256;
constexpr std::chrono::seconds kIdle{15};

using Response = http::response<http::string_body>;

}  // namespace

struct HttpServer::Shared {
  Routes routes;
  std::set<Session*> sessions;
};

// One connection; keeps itself alive by the operation under way.
class HttpServer::Session : public std::enable_shared_from_this<Session> {
 public:
  Session(tcp::socket socket, std::shared_ptr<Shared> shared)
      : stream_(std::move(socket)), shared_(std::move(shared)) {
    shared_->sessions.insert(this);
  }
  ~Session() { shared_->sessions.erase(this); }

  void Close() { stream_.close(); }

  void Read() {
    parser_.emplace();
    parser_->header_limit(kMaxHeaderBytes);
    parser_->body_limit(0);
    stream_.expires_after(kIdle);
    http::async_read(stream_, buffer_, *parser_,
                     [self = shared_from_this()](boost::beast::error_code error, size_t) {
                       self->OnRead(error);
                     });
  }

 private:
  void OnRead(boost::beast::error_code error) {
    keep_alive_ = false;  // until a whole request asks for it
    if (error == http::error::header_limit) {
      return Reply(http::status::request_header_fields_too_large, "the header is too large\n");
    }
    if (error == http::error::body_limit) {
      return Reply(http::status::payload_too_large, "no body is expected\n");
    }
    if (error.category() == http::make_error_code(http::error::bad_method).category() &&
        error != http::error::end_of_stream && error != http::error::partial_message) {
      return Reply(http::status::bad_request, "not an HTTP request\n");
    }
    if (error) return;  // the peer left or was idle
    const auto& request = parser_->get();
    keep_alive_ = request.keep_alive();
    std::string_view path(request.target().data(), request.target().size());
    path = path.substr(0, path.find('?'));
    const auto route = shared_->routes.find(path);
    if (route == shared_->routes.end()) return Reply(http::status::not_found, "not found\n");
    if (request.method() != http::verb::get) {
      return Reply(http::status::method_not_allowed, "only GET\n");
    }
    HttpReply reply = route->second();
    Reply(static_cast<http::status>(reply.status), std::move(reply.body), reply.content_type);
  }

  void Reply(http::status status, std::string body,
             const std::string& content_type = "text/plain; charset=utf-8") {
    response_ = Response(status, 11);
    response_.set(http::field::content_type, content_type);
    response_.set(http::field::cache_control, "no-store");
    if (status == http::status::method_not_allowed) response_.set(http::field::allow, "GET");
    response_.keep_alive(keep_alive_);
    response_.body() = std::move(body);
    response_.prepare_payload();
    stream_.expires_after(kIdle);
    http::async_write(stream_, response_,
                      [self = shared_from_this()](boost::beast::error_code error, size_t) {
                        self->OnWritten(error);
                      });
  }

  void OnWritten(boost::beast::error_code error) {
    if (error) return;
    if (keep_alive_) return Read();
    stream_.socket().shutdown(tcp::socket::shutdown_send, error);
  }

  boost::beast::tcp_stream stream_;
  const std::shared_ptr<Shared> shared_;
  boost::beast::flat_buffer buffer_{kMaxHeaderBytes};
  std::optional<http::request_parser<http::empty_body>> parser_;
  Response response_;
  bool keep_alive_ = false;
};

HttpServer::HttpServer(boost::asio::any_io_executor strand, int listen_fd, Routes routes)
    : strand_(strand),
      shared_(std::make_shared<Shared>()),
      acceptor_(strand, listen_fd, [this](int fd) { OnConnection(fd); }) {
  shared_->routes = std::move(routes);
}

HttpServer::~HttpServer() = default;

void HttpServer::OnConnection(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (shared_->sessions.size() >= kMaxConnections ||
      getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    close(fd);
    return;
  }
  tcp::socket socket(strand_);
  boost::system::error_code error;
  socket.assign(address.ss_family == AF_INET6 ? tcp::v6() : tcp::v4(), fd, error);
  if (error) {
    close(fd);
    return;
  }
  std::make_shared<Session>(std::move(socket), shared_)->Read();
}

void HttpServer::Stop() {
  acceptor_.Stop();
  for (Session* session : shared_->sessions) session->Close();
}

}  // namespace sparsekv
