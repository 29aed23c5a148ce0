#include "coordinator/http_server.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <time.h>

#include <memory>

#include "coordinator/loopback.h"

namespace sparsekv {
namespace {

class HttpServerTest : public ::testing::Test {
 protected:
  HttpServerTest() {
    strand_.Do([this] {
      server_ = std::make_unique<HttpServer>(
          strand_.executor(), listener_.Inherit(),
          HttpServer::Routes{
              {"/healthz", [] { return HttpReply{.body = "ok\n"}; }},
              {"/readyz", [] { return HttpReply{.status = 503, .body = "why\n"}; }}});
      server_->Start();
    });
  }
  ~HttpServerTest() override {
    strand_.Do([this] { server_->Stop(); });
    strand_.Join();
  }

  int Connect() {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    Connect(fd);
    return fd;
  }
  void Connect(int fd) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(listener_.port());
    EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }
  static void Send(int fd, const std::string& text) {
    EXPECT_EQ(send(fd, text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
  }
  // Until the server closes, or `until` has come.
  static std::string Receive(int fd, const std::string& until = "") {
    std::string all;
    char buffer[4096];
    while (until.empty() || all.find(until) == std::string::npos) {
      const ssize_t got = recv(fd, buffer, sizeof buffer, 0);
      if (got <= 0) break;
      all.append(buffer, static_cast<size_t>(got));
    }
    return all;
  }
  std::string Exchange(const std::string& request) {
    const int fd = Connect();
    Send(fd, request);
    std::string reply = Receive(fd);
    close(fd);
    return reply;
  }
  static std::string FirstLine(const std::string& reply) {
    return reply.substr(0, reply.find('\r'));
  }

  LoopbackListener listener_;
  StrandThread strand_;
  std::unique_ptr<HttpServer> server_;
};

constexpr char kEnd[] = " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

TEST_F(HttpServerTest, AnswersItsPaths) {
  const std::string reply = Exchange(std::string("GET /healthz?verbose=1") + kEnd);
  EXPECT_EQ(FirstLine(reply), "HTTP/1.1 200 OK");
  EXPECT_TRUE(reply.ends_with("\r\n\r\nok\n")) << reply;
  EXPECT_EQ(FirstLine(Exchange(std::string("GET /readyz") + kEnd)),
            "HTTP/1.1 503 Service Unavailable");
}

TEST_F(HttpServerTest, RefusesOtherPathsAndMethods) {
  EXPECT_EQ(FirstLine(Exchange(std::string("GET /") + kEnd)), "HTTP/1.1 404 Not Found");
  const std::string post = Exchange(std::string("POST /healthz") + kEnd);
  EXPECT_EQ(FirstLine(post), "HTTP/1.1 405 Method Not Allowed");
  EXPECT_NE(post.find("Allow: GET\r\n"), std::string::npos);
  EXPECT_EQ(FirstLine(Exchange("GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
                               "Connection: close\r\n\r\nhello")),
            "HTTP/1.1 413 Payload Too Large");
}

TEST_F(HttpServerTest, RefusesWhatIsNotHttpAndHeadersWithoutEnd) {
  EXPECT_EQ(FirstLine(Exchange("hello there\r\n\r\n")), "HTTP/1.1 400 Bad Request");
  EXPECT_EQ(FirstLine(Exchange("GET /healthz HTTP/1.1\r\nX: " + std::string(8190, 'y'))),
            "HTTP/1.1 431 Request Header Fields Too Large");
}

TEST_F(HttpServerTest, KeepsAConnectionForSeveralRequests) {
  const int fd = Connect();
  for (int i = 0; i < 3; ++i) {
    Send(fd, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    EXPECT_EQ(FirstLine(Receive(fd, "ok\n")), "HTTP/1.1 200 OK");
  }
  close(fd);
}

TEST_F(HttpServerTest, ABoundNumberOfConnectionsIsServed) {
  std::vector<int> idle;
  for (int i = 0; i < 300; ++i) idle.push_back(Connect());
  EXPECT_EQ(Receive(idle.back()), "");  // closed at once
  for (int fd : idle) close(fd);
  std::string reply;
  for (int i = 0; i < 100 && reply.empty(); ++i) {
    reply = Exchange(std::string("GET /healthz") + kEnd);
  }
  EXPECT_EQ(FirstLine(reply), "HTTP/1.1 200 OK");
}

// With no descriptor left, connections wait in the backlog; nothing spins, and nothing is lost.
TEST_F(HttpServerTest, OutlivesALackOfDescriptors) {
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const int client = Connect();
  Send(client, std::string("GET /healthz") + kEnd);
  ASSERT_EQ(FirstLine(Receive(client)), "HTTP/1.1 200 OK");  // the server is at rest again
  const int waiting = socket(AF_INET, SOCK_STREAM, 0);
  rlimit none = before;
  none.rlim_cur = 0;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  Connect(waiting);
  Send(waiting, std::string("GET /healthz") + kEnd);
  timespec used_before{}, used_after{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used_before);
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used_after);
  EXPECT_LT(used_after.tv_sec * 1000 + used_after.tv_nsec / 1000000 - used_before.tv_sec * 1000 -
                used_before.tv_nsec / 1000000,
            100);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(FirstLine(Receive(waiting)), "HTTP/1.1 200 OK");
  close(waiting);
  close(client);
}

}  // namespace
}  // namespace sparsekv
