#include "kv_store/attach_server.h"

#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/ids.h"
#include "base/unix_socket.h"

namespace sparsekv::kv_store {
namespace {

constexpr auto kHelloTimeout = std::chrono::seconds(5);
constexpr auto kAcceptRetry = std::chrono::milliseconds(100);
constexpr size_t kMaxGreeting = 64;  // connections that have not said who they are

bool SameUser(int socket) {
  absl::StatusOr<uid_t> user = PeerUser(socket);
  return user.ok() && *user == geteuid();
}

}  // namespace

struct AttachServer::Session {
  Session(boost::asio::io_context& io, int fd) : socket(io, fd), deadline(io) {}

  boost::asio::posix::stream_descriptor socket;
  boost::asio::steady_timer deadline;
  uint32_t pool = 0;            // once attached
  uint64_t worker_boot_id = 0;  // once attached
};

absl::StatusOr<std::unique_ptr<AttachServer>> AttachServer::Listen(boost::asio::io_context& io,
                                                                   const std::string& path,
                                                                   const Offer& offer) {
  absl::StatusOr<UniqueFd> listener = ListenPackets(path);
  if (!listener.ok()) return listener.status();
  std::unique_ptr<AttachServer> server(new AttachServer(io, path, offer, std::move(*listener)));
  server->WaitForConnection();
  return server;
}

AttachServer::AttachServer(boost::asio::io_context& io, const std::string& path, const Offer& offer,
                           UniqueFd listener)
    : io_(io), path_(path), offer_(offer), listener_(io, listener.release()), retry_(io) {}

AttachServer::~AttachServer() {
  while (!greeting_.empty()) Drop(*greeting_.begin());
  while (!attached_.empty()) Drop(attached_.begin()->second);
  unlink(path_.c_str());
}

void AttachServer::WaitForConnection() {
  listener_.async_wait(boost::asio::posix::descriptor_base::wait_read,
                       [this](const boost::system::error_code& error) {
                         if (!error) AcceptAll();
                       });
}

void AttachServer::AcceptAll() {
  while (true) {
    UniqueFd socket(
        accept4(listener_.native_handle(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (socket) {
      StartSession(std::move(socket));
      continue;
    }
    if (errno == EINTR || errno == ECONNABORTED) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return WaitForConnection();
    // Out of descriptors or memory: the connection stays in the queue, so waiting would spin.
    spdlog::warn("attach: accept: {}", std::strerror(errno));
    retry_.expires_after(kAcceptRetry);
    retry_.async_wait([this](const boost::system::error_code& error) {
      if (!error) AcceptAll();
    });
    return;
  }
}

void AttachServer::StartSession(UniqueFd socket) {
  if (!SameUser(socket.get()) || greeting_.size() >= kMaxGreeting) {
    spdlog::warn("attach: refused a connection");
    return;
  }
  auto session = std::make_shared<Session>(io_, socket.release());
  greeting_.insert(session);
  session->deadline.expires_after(kHelloTimeout);
  session->deadline.async_wait([this, session](const boost::system::error_code& error) {
    // The hello may have come between the timer's end and now.
    if (!error && greeting_.contains(session)) Drop(session);
  });
  session->socket.async_wait(boost::asio::posix::descriptor_base::wait_read,
                             [this, session](const boost::system::error_code& error) {
                               if (!error) OnHello(session);
                             });
}

void AttachServer::OnHello(const std::shared_ptr<Session>& session) {
  session->deadline.cancel();
  greeting_.erase(session);
  const int socket = session->socket.native_handle();
  AttachHello hello = {};
  absl::StatusOr<Packet> packet = ReceivePacket(socket, &hello, sizeof hello, 0);
  if (!packet.ok() && !absl::IsDataLoss(packet.status())) return Drop(session);
  const AttachReply reply = Judge(hello, packet.ok() ? packet->bytes : 0);
  const bool accepted = reply.status == static_cast<uint32_t>(AttachStatus::kOk);
  if (!accepted) {
    spdlog::warn("attach: pool {} for worker {} refused: status {}", hello.pool,
                 HexId(hello.worker_boot_id), reply.status);
    [[maybe_unused]] const absl::Status told = SendPacket(socket, &reply, sizeof reply, {});
    return Drop(session);
  }
  Attached(session, hello);
  absl::Status sent = SendPacket(socket, &reply, sizeof reply, Descriptors(hello.pool));
  if (!sent.ok()) {
    spdlog::warn("attach: {}", sent.ToString());
    Drop(session);
  }
}

std::vector<int> AttachServer::Descriptors(uint32_t pool) {
  std::vector<int> fds = {offer_.meta_fd, offer_.rows_fds[pool]};
  if (!offer_.gather) return fds;
  absl::StatusOr<GatherServer::Offer> gather = offer_.gather->Open(pool);
  if (gather.ok()) {
    fds.insert(fds.end(), {gather->memory_fd, gather->doorbell_fd, gather->completion_fd});
  } else {  // the worker reads directly
    spdlog::warn("attach: pool {} goes without gather: {}", pool, gather.status().ToString());
  }
  return fds;
}

AttachReply AttachServer::Judge(const AttachHello& hello, size_t bytes) {
  AttachReply reply = {.magic = kAttachMagic,
                       .version = kAttachVersion,
                       .status = static_cast<uint32_t>(AttachStatus::kOk),
                       .store_boot_id = offer_.store_boot_id,
                       .segment_id = offer_.segment_id,
                       .holder_boot_id = 0};
  const auto refuse = [&reply](AttachStatus status) {
    reply.status = static_cast<uint32_t>(status);
    return reply;
  };
  // The version stands before everything that another version may have changed.
  if (bytes < offsetof(AttachHello, pool) || hello.magic != kAttachMagic) {
    return refuse(AttachStatus::kBadHello);
  }
  if (hello.version != kAttachVersion) return refuse(AttachStatus::kBadVersion);
  if (bytes != sizeof hello || hello.worker_boot_id == 0) return refuse(AttachStatus::kBadHello);
  if (hello.pool >= offer_.rows_fds.size()) return refuse(AttachStatus::kBadPool);
  const auto holder = attached_.find(hello.pool);
  if (holder == attached_.end()) return reply;
  // A dead holder's hang-up may still wait in our queue; the kernel knows of it already.
  Session& held = *holder->second;
  if (held.worker_boot_id != hello.worker_boot_id && !PeerHungUp(held.socket.native_handle())) {
    reply.holder_boot_id = held.worker_boot_id;
    return refuse(AttachStatus::kPoolBusy);
  }
  return reply;
}

void AttachServer::Attached(const std::shared_ptr<Session>& session, const AttachHello& hello) {
  if (const auto holder = attached_.find(hello.pool); holder != attached_.end()) {
    Drop(holder->second);
  }
  session->pool = hello.pool;
  session->worker_boot_id = hello.worker_boot_id;
  attached_.emplace(hello.pool, session);
  spdlog::info("attach: pool {} to worker {}", hello.pool, HexId(hello.worker_boot_id));
  // A worker says nothing more: whatever wakes this up ends the connection.
  session->socket.async_wait(boost::asio::posix::descriptor_base::wait_read,
                             [this, session](const boost::system::error_code& error) {
                               if (!error) Drop(session);
                             });
}

// A session may be dropped by more than one path; only the first does anything. By value: the
// caller's pointer may be the one in the set.
void AttachServer::Drop(std::shared_ptr<Session> session) {
  if (!session->socket.is_open()) return;
  session->deadline.cancel();
  session->socket.close();
  greeting_.erase(session);
  if (session->worker_boot_id == 0) return;
  CHECK_EQ(attached_.erase(session->pool), 1u);
  if (offer_.gather) offer_.gather->Close(session->pool);
  spdlog::info("attach: worker {} left pool {}", HexId(session->worker_boot_id), session->pool);
}

}  // namespace sparsekv::kv_store
