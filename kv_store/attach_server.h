#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/shared_memory.h"
#include "kv_store/attach.h"
#include "kv_store/gather_server.h"

namespace sparsekv::kv_store {

// The store's side of kv_store/attach.h: hands the segment's descriptors to workers and keeps one
// connection per pool open. Everything here runs on the thread that runs `io`; none of it blocks.
//
// A pool has one worker at a time. Another one is refused while the first connection is up, unless
// it has the same boot id (then it replaces the connection): whoever wants a pool from a hung
// worker must kill that worker first, since only the kernel can say that it writes no more.
class AttachServer {
 public:
  struct Offer {
    uint64_t store_boot_id = 0;
    uint64_t segment_id = 0;
    int meta_fd = -1;                // read-only
    std::vector<int> rows_fds;       // one per pool
    GatherServer* gather = nullptr;  // must outlive this; null: none is offered
  };

  // Listens at `path`, which has mode 0600. The offer's descriptors stay the caller's and must stay
  // open while this lives. `io` must outlive this and must not run after this is gone.
  static absl::StatusOr<std::unique_ptr<AttachServer>> Listen(boost::asio::io_context& io,
                                                              const std::string& path,
                                                              const Offer& offer);
  ~AttachServer();

  size_t attached() const { return attached_.size(); }  // pools that have a worker

 private:
  struct Session;

  AttachServer(boost::asio::io_context& io, const std::string& path, const Offer& offer,
               UniqueFd listener);
  void WaitForConnection();
  void AcceptAll();
  void StartSession(UniqueFd socket);
  void OnHello(const std::shared_ptr<Session>& session);
  AttachReply Judge(const AttachHello& hello, size_t bytes);
  std::vector<int> Descriptors(uint32_t pool);
  void Attached(const std::shared_ptr<Session>& session, const AttachHello& hello);
  void Drop(std::shared_ptr<Session> session);

  boost::asio::io_context& io_;
  const std::string path_;
  const Offer offer_;
  boost::asio::posix::stream_descriptor listener_;
  boost::asio::steady_timer retry_;
  std::set<std::shared_ptr<Session>> greeting_;            // said nothing yet
  std::map<uint32_t, std::shared_ptr<Session>> attached_;  // by pool
};

}  // namespace sparsekv::kv_store
