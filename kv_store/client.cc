#include "kv_store/client.h"

#include <unistd.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/ids.h"
#include "base/unix_socket.h"
#include "kv_store/attach.h"
#include "kv_store/gather_server.h"

namespace sparsekv::kv_store {
namespace {

constexpr int kAttachTimeoutMs = 5000;

absl::Status RefusalStatus(const AttachReply& reply, uint32_t pool) {
  switch (static_cast<AttachStatus>(reply.status)) {
    case AttachStatus::kOk:
      return absl::OkStatus();
    case AttachStatus::kBadHello:
      return absl::InvalidArgumentError("the store refused the attach message");
    case AttachStatus::kBadVersion:
      return absl::FailedPreconditionError(absl::StrCat(
          "the store speaks attach version ", reply.version, ", this worker ", kAttachVersion));
    case AttachStatus::kBadPool:
      return absl::InvalidArgumentError(absl::StrCat("the store has no pool ", pool));
    case AttachStatus::kPoolBusy:
      return absl::UnavailableError(
          absl::StrCat("pool ", pool, " is attached by worker ", HexId(reply.holder_boot_id)));
  }
  return absl::FailedPreconditionError(absl::StrCat("unknown attach status ", reply.status));
}

// Kept out of line: the comparisons before it run for every block of a table.
[[gnu::noinline]] absl::Status Mismatch(const std::string& what, const char* field, uint64_t found,
                                        uint64_t expected) {
  return absl::DataLossError(
      absl::StrCat(what, ": ", field, " is ", found, ", expected ", expected));
}

std::string BlockName(uint32_t block) { return absl::StrCat("block ", block); }
std::string RowsName(uint32_t layer, uint32_t block) {
  return absl::StrCat("rows of layer ", layer, " block ", block);
}

}  // namespace

struct SegmentClient::Connection {
  UniqueFd socket;
  AttachReply reply;
  std::vector<UniqueFd> fds;  // as in kv_store/attach.h
  bool offers_gather() const { return fds.size() == kAttachFdsWithGather; }
  GatherClient::Fds TakeGatherFds() {
    return {.memory = std::move(fds[2]),
            .doorbell = std::move(fds[3]),
            .completion = std::move(fds[4])};
  }
};

SegmentClient::~SegmentClient() = default;

absl::StatusOr<SegmentClient::Connection> SegmentClient::Connect(const std::string& attach_socket,
                                                                 uint32_t pool,
                                                                 uint64_t worker_boot_id) {
  absl::StatusOr<UniqueFd> socket = ConnectPackets(attach_socket, kAttachTimeoutMs);
  if (!socket.ok()) return socket.status();
  absl::StatusOr<uid_t> user = PeerUser(socket->get());
  if (!user.ok()) return user.status();
  if (*user != geteuid()) {
    return absl::FailedPreconditionError(
        absl::StrCat(attach_socket, " is served by user ", *user, ", not ", geteuid()));
  }
  const AttachHello hello = {.magic = kAttachMagic,
                             .version = kAttachVersion,
                             .pool = pool,
                             .worker_boot_id = worker_boot_id};
  absl::Status sent = SendPacket(socket->get(), &hello, sizeof hello, {});
  if (!sent.ok()) return sent;
  AttachReply reply = {};
  absl::StatusOr<Packet> packet =
      ReceivePacket(socket->get(), &reply, sizeof reply, kAttachTimeoutMs);
  if (absl::IsDeadlineExceeded(packet.status())) {
    return absl::UnavailableError(absl::StrCat(attach_socket, " gave no answer"));
  }
  if (!packet.ok()) return packet.status();
  if (packet->bytes != sizeof reply || reply.magic != kAttachMagic) {
    return absl::FailedPreconditionError(absl::StrCat(attach_socket, " is no attach socket"));
  }
  if (absl::Status status = RefusalStatus(reply, pool); !status.ok()) return status;
  if (packet->fds.size() != kAttachFds && packet->fds.size() != kAttachFdsWithGather) {
    return absl::DataLossError(absl::StrCat("the store passed ", packet->fds.size(),
                                            " descriptors, not ", kAttachFds, " or ",
                                            kAttachFdsWithGather));
  }
  return Connection{std::move(*socket), reply, std::move(packet->fds)};
}

absl::StatusOr<std::unique_ptr<SegmentClient>> SegmentClient::Attach(
    const std::string& attach_socket, uint32_t pool, uint64_t worker_boot_id) {
  absl::StatusOr<Connection> connection = Connect(attach_socket, pool, worker_boot_id);
  if (!connection.ok()) return connection.status();
  std::unique_ptr<SegmentClient> client(new SegmentClient);
  client->attach_socket_ = attach_socket;
  client->pool_ = pool;
  client->worker_boot_id_ = worker_boot_id;
  client->store_boot_id_ = connection->reply.store_boot_id;
  absl::Status mapped =
      client->Map(connection->fds[0].get(), connection->fds[1].get(), connection->reply.segment_id);
  if (!mapped.ok()) return mapped;
  client->connection_ = std::make_shared<UniqueFd>(std::move(connection->socket));
  if (connection->offers_gather()) {
    absl::StatusOr<std::unique_ptr<GatherClient>> gather =
        GatherClient::Make(client->layout(), client->store_boot_id(), connection->TakeGatherFds(),
                           client->connection_);
    if (!gather.ok()) return gather.status();
    client->gather_ = std::move(*gather);
  }
  return client;
}

// Sizes come from the header's own copy, and the files must be sealed at exactly those sizes: from
// then on no access to the mappings can fail.
absl::Status SegmentClient::Map(int meta_fd, int rows_fd, uint64_t segment_id) {
  for (int fd : {meta_fd, rows_fd}) {
    absl::StatusOr<bool> sealed = IsSizeSealed(fd);
    if (!sealed.ok()) return sealed.status();
    if (!*sealed) return absl::DataLossError("the store passed memory that is not sealed");
  }
  {
    absl::StatusOr<Mapping> first_page = Mapping::OfFile(meta_fd, kPage, Mapping::Access::kRead);
    if (!first_page.ok()) return first_page.status();
    facts_ = ReadFacts(*HeaderOf(first_page->data()));
  }
  if (!facts_.valid || facts_.segment_id != segment_id || pool_ >= facts_.pools) {
    return absl::DataLossError("the segment's header is not one of this version");
  }
  const size_t meta_bytes = MetaBytes(facts_.pools, facts_.layout.blocks);
  const size_t rows_bytes = RowsBytes(facts_.layout);
  absl::StatusOr<size_t> meta_size = FileBytes(meta_fd);
  absl::StatusOr<size_t> rows_size = FileBytes(rows_fd);
  if (!meta_size.ok()) return meta_size.status();
  if (!rows_size.ok()) return rows_size.status();
  if (*meta_size != meta_bytes || *rows_size != rows_bytes) {
    return absl::DataLossError(absl::StrCat("meta and rows have ", *meta_size, " and ", *rows_size,
                                            " bytes, expected ", meta_bytes, " and ", rows_bytes));
  }
  absl::StatusOr<Mapping> meta = Mapping::OfFile(meta_fd, meta_bytes, Mapping::Access::kRead);
  if (!meta.ok()) return meta.status();
  absl::StatusOr<Mapping> rows = Mapping::OfFile(rows_fd, rows_bytes, Mapping::Access::kReadWrite);
  if (!rows.ok()) return rows.status();
  meta_ = std::move(*meta);
  rows_ = std::move(*rows);
  return absl::OkStatus();
}

std::unique_ptr<SegmentClient> SegmentClient::MakeLocal(const RowLayout& layout,
                                                        uint64_t fingerprint) {
  CHECK(WithinLimits(layout, 1));
  std::unique_ptr<SegmentClient> client(new SegmentClient);
  client->store_boot_id_ = NewBootId();
  client->facts_ = {.valid = true,
                    .segment_id = NewBootId(),
                    .fingerprint = fingerprint,
                    .pools = 1,
                    .layout = layout};
  absl::StatusOr<Mapping> meta = Mapping::Anonymous(MetaBytes(1, layout.blocks));
  absl::StatusOr<Mapping> rows = Mapping::Anonymous(RowsBytes(layout));
  CHECK(meta.ok() && rows.ok());
  client->meta_ = std::move(*meta);
  client->rows_ = std::move(*rows);
  WriteFacts(client->facts_, HeaderOf(client->meta_.data()));
  client->local_table_ = std::make_unique<BlockTable>(
      BlocksOf(client->meta_.data()), BlockTable::Config{.pools = 1,
                                                         .blocks = layout.blocks,
                                                         .fingerprint = fingerprint,
                                                         .store_boot_id = client->store_boot_id()});
  return client;
}

absl::Status SegmentClient::CheckBlock(uint32_t block, uint64_t owner, uint32_t generation,
                                       uint32_t first_position) const {
  if (block >= layout().blocks) {
    return absl::InvalidArgumentError(
        absl::StrCat("block ", block, ", and the pool has ", layout().blocks));
  }
  const BlockFacts found = ReadBlock(header(block));
  for (uint64_t seen : {found.tag, found.tag_after}) {
    if (TagGeneration(seen) != generation) {
      return Mismatch(BlockName(block), "generation", TagGeneration(seen), generation);
    }
    if (TagLow(seen) != static_cast<uint32_t>(BlockState::kHeld)) {
      return Mismatch(BlockName(block), "state", TagLow(seen),
                      static_cast<uint32_t>(BlockState::kHeld));
    }
  }
  if (found.owner != owner) return Mismatch(BlockName(block), "owner", found.owner, owner);
  if (found.first_position != first_position) {
    return Mismatch(BlockName(block), "first position", found.first_position, first_position);
  }
  if (found.fingerprint != fingerprint()) {
    return Mismatch(BlockName(block), "fingerprint", found.fingerprint, fingerprint());
  }
  return absl::OkStatus();
}

void SegmentClient::StampRows(uint32_t layer, uint32_t block, uint64_t owner, uint32_t generation,
                              uint32_t first_position) {
  CHECK_NE(generation, 0u);
  RowStamp& shared = stamp(layer, block);
  shared.tag.store(0, std::memory_order_relaxed);
  shared.owner.store(owner, std::memory_order_release);
  shared.fingerprint.store(fingerprint(), std::memory_order_release);
  shared.layer.store(layer, std::memory_order_release);
  shared.first_position.store(first_position, std::memory_order_release);
  shared.tag.store(MakeTag(generation, 0), std::memory_order_release);
}

void SegmentClient::PublishRows(uint32_t layer, uint32_t block, uint32_t rows_valid) {
  CHECK_LE(rows_valid, kBlockTokens);
  RowStamp& shared = stamp(layer, block);
  const uint32_t generation = TagGeneration(shared.tag.load(std::memory_order_relaxed));
  shared.tag.store(MakeTag(generation, rows_valid), std::memory_order_release);
}

absl::Status SegmentClient::CheckRows(uint32_t layer, uint32_t block, uint64_t owner,
                                      uint32_t generation, uint32_t first_position,
                                      uint32_t rows_at_least) const {
  if (layer >= layout().layers || block >= layout().blocks) {
    return absl::InvalidArgumentError(absl::StrCat("layer ", layer, " block ", block,
                                                   ", and there are ", layout().layers, " and ",
                                                   layout().blocks));
  }
  const StampFacts found = ReadStamp(stamp(layer, block));
  for (uint64_t seen : {found.tag, found.tag_after}) {
    if (TagGeneration(seen) != generation) {
      return Mismatch(RowsName(layer, block), "generation", TagGeneration(seen), generation);
    }
  }
  if (found.owner != owner) return Mismatch(RowsName(layer, block), "owner", found.owner, owner);
  if (found.layer != layer) return Mismatch(RowsName(layer, block), "layer", found.layer, layer);
  if (found.first_position != first_position) {
    return Mismatch(RowsName(layer, block), "first position", found.first_position, first_position);
  }
  if (found.fingerprint != fingerprint()) {
    return Mismatch(RowsName(layer, block), "fingerprint", found.fingerprint, fingerprint());
  }
  const uint32_t rows_valid = TagLow(found.tag);
  if (rows_valid < rows_at_least || rows_valid > kBlockTokens) {
    return Mismatch(RowsName(layer, block), "rows_valid", rows_valid, rows_at_least);
  }
  return absl::OkStatus();
}

bool SegmentClient::store_alive() const {
  return local_table_ != nullptr || (connection_ && !PeerHungUp(connection_->get()));
}

absl::Status SegmentClient::Reattach() {
  CHECK(local_table_ == nullptr);
  absl::StatusOr<Connection> connection = Connect(attach_socket_, pool_, worker_boot_id_);
  if (!connection.ok()) return connection.status();
  if (connection->reply.segment_id != facts_.segment_id) {
    return absl::FailedPreconditionError(
        absl::StrCat("the store serves segment ", HexId(connection->reply.segment_id),
                     ", this worker maps ", HexId(facts_.segment_id)));
  }
  connection_ = std::make_shared<UniqueFd>(std::move(connection->socket));
  store_boot_id_.store(connection->reply.store_boot_id, std::memory_order_release);
  if (gather_ && connection->offers_gather()) {
    return gather_->Renew(connection->reply.store_boot_id, connection->TakeGatherFds(),
                          connection_);
  }
  return absl::OkStatus();
}

void SegmentClient::StartLocalGather(uint32_t threads, size_t staging_bytes) {
  CHECK(local_table_ != nullptr && gather_ == nullptr);
  absl::StatusOr<std::unique_ptr<GatherServer>> server =
      GatherServer::Start({.layout = layout(),
                           .fingerprint = fingerprint(),
                           .store_boot_id = store_boot_id(),
                           .threads = threads,
                           .staging_bytes = staging_bytes},
                          {{.blocks = BlocksOf(meta_.data()), .rows = rows_.data()}});
  CHECK(server.ok());
  absl::StatusOr<GatherServer::Offer> offer = (*server)->Open(0);
  CHECK(offer.ok());
  absl::StatusOr<std::unique_ptr<GatherClient>> gather =
      GatherClient::Make(layout(), store_boot_id(),
                         {.memory = UniqueFd(dup(offer->memory_fd)),
                          .doorbell = UniqueFd(dup(offer->doorbell_fd)),
                          .completion = UniqueFd(dup(offer->completion_fd))},
                         std::make_shared<UniqueFd>());
  CHECK(gather.ok());
  local_gather_ = std::move(*server);
  gather_ = std::move(*gather);
}

absl::StatusOr<BlockGrant> SegmentClient::Grant(uint32_t tokens, uint64_t owner) {
  CHECK(local_table_ != nullptr);
  return local_table_->Allocate(0, owner, tokens);
}

void SegmentClient::ReleaseLocal(uint64_t owner) {
  CHECK(local_table_ != nullptr);
  CHECK(local_table_->Release(0, owner).ok());
}

const BlockHeader& SegmentClient::header(uint32_t block) const {
  return BlocksOf(meta_.data())[size_t{pool_} * layout().blocks + block];
}

RowStamp& SegmentClient::stamp(uint32_t layer, uint32_t block) const {
  CHECK_LT(layer, layout().layers);
  CHECK_LT(block, layout().blocks);
  return StampsOf(rows_.data(), layout())[size_t{layer} * layout().blocks + block];
}

}  // namespace sparsekv::kv_store
