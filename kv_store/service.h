#pragma once

#include <boost/asio/io_context.hpp>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kv_store/block_table.h"

namespace sparsekv::kv_store {

// The gRPC service KvStore (proto/sparsekv/v1/kv_store.proto) on a Unix socket. gRPC's threads only
// post into `io`; the thread that runs `io` owns the table, answers there and nowhere else. The
// only file of the store that sees gRPC is service.cc.
class KvStoreServer {
 public:
  struct Facts {
    uint64_t boot_id = 0;
    uint64_t bytes_per_block = 0;  // of one block id, all layers
  };

  // Serves on `socket_path`, whose mode comes from the umask; a stale socket file is replaced. `io`
  // and `table` must outlive this.
  static absl::StatusOr<std::unique_ptr<KvStoreServer>> Start(boost::asio::io_context& io,
                                                              BlockTable& table, const Facts& facts,
                                                              const std::string& socket_path);
  virtual ~KvStoreServer() = default;

  // Takes no more calls (late ones end as UNAVAILABLE or CANCELLED, with nothing done or with a
  // whole change done) and waits until those in progress are answered. Blocks, so it must run on
  // another thread than `io`'s, which must go on running meanwhile. Call exactly once.
  virtual void Shutdown() = 0;
};

}  // namespace sparsekv::kv_store
