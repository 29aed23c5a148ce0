#include "kv_store/segment.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/numa.h"
#include "kv_store/memory_check.h"

namespace sparsekv::kv_store {
namespace {

absl::Status Differs(const char* field, const std::string& found, const std::string& expected) {
  return absl::FailedPreconditionError(
      absl::StrCat("the segment has ", field, " ", found, ", expected ", expected));
}

absl::Status CompareFacts(const SegmentFacts& found, const SegmentFacts& expected) {
  const RowLayout& a = found.layout;
  const RowLayout& b = expected.layout;
  const struct {
    const char* field;
    uint32_t found, expected;
  } numbers[] = {{"pools", found.pools, expected.pools},
                 {"layers", a.layers, b.layers},
                 {"kv_heads", a.kv_heads, b.kv_heads},
                 {"head_dim", a.head_dim, b.head_dim},
                 {"blocks", a.blocks, b.blocks}};
  for (const auto& number : numbers) {
    if (number.found != number.expected) {
      return Differs(number.field, absl::StrCat(number.found), absl::StrCat(number.expected));
    }
  }
  if (a.dtype != b.dtype) {
    return Differs("row dtype", std::string(Name(a.dtype)), std::string(Name(b.dtype)));
  }
  if (found.fingerprint != expected.fingerprint) {
    return Differs("fingerprint", HexId(found.fingerprint), HexId(expected.fingerprint));
  }
  return absl::OkStatus();
}

// Each descriptor a memfd of its own: two pools in one file would overwrite each other's rows.
absl::Status CheckDistinctMemfds(int meta_fd, const std::vector<UniqueFd>& rows_fds) {
  std::vector<int> fds = {meta_fd};
  for (const UniqueFd& fd : rows_fds) fds.push_back(fd.get());
  std::set<ino_t> seen;
  for (int fd : fds) {
    absl::StatusOr<bool> sealed = IsSizeSealed(fd);
    if (!sealed.ok()) return sealed.status();
    struct stat info = {};
    if (fstat(fd, &info) != 0) return absl::ErrnoToStatus(errno, "fstat");
    if (!seen.insert(info.st_ino).second) {
      return absl::InvalidArgumentError(absl::StrCat("descriptor ", fd, " is given twice"));
    }
  }
  return absl::OkStatus();
}

// A sealed file must have exactly this size, because no later change of it is possible.
absl::Status CheckSealedSize(const std::string& name, int fd, size_t expected) {
  absl::StatusOr<bool> sealed = IsSizeSealed(fd);
  absl::StatusOr<size_t> bytes = FileBytes(fd);
  if (!sealed.ok()) return sealed.status();
  if (!bytes.ok()) return bytes.status();
  if (!*sealed) return absl::FailedPreconditionError(absl::StrCat(name, " is not sealed"));
  if (*bytes == expected) return absl::OkStatus();
  return Differs("bytes of", absl::StrCat(name, " ", *bytes), absl::StrCat(expected));
}

}  // namespace

absl::StatusOr<Segment> Segment::Open(const Spec& spec, UniqueFd meta_fd,
                                      std::vector<UniqueFd> rows_fds, uint64_t store_boot_id,
                                      size_t available_bytes) {
  CHECK(WithinLimits(spec.layout, static_cast<uint32_t>(rows_fds.size())));
  CHECK_NE(store_boot_id, 0u);
  if (absl::Status status = CheckDistinctMemfds(meta_fd.get(), rows_fds); !status.ok()) {
    return status;
  }
  Segment segment;
  segment.rows_fds_ = std::move(rows_fds);
  absl::StatusOr<bool> complete = IsSizeSealed(meta_fd.get());
  if (!complete.ok()) return complete.status();
  segment.adopted_ = *complete;
  absl::Status status = *complete ? segment.Adopt(spec, meta_fd.get())
                                  : segment.Create(spec, meta_fd.get(), available_bytes);
  if (!status.ok()) return status;
  absl::StatusOr<UniqueFd> read_only = ReopenReadOnly(meta_fd.get());
  if (!read_only.ok()) return read_only.status();
  segment.meta_read_only_ = std::move(*read_only);
  HeaderOf(segment.meta_.data())->store_boot_id.store(store_boot_id, std::memory_order_release);
  return segment;
}

absl::Status Segment::Create(const Spec& spec, int meta_fd, size_t available_bytes) {
  facts_ = {.valid = true,
            .segment_id = NewBootId(),
            .fingerprint = spec.fingerprint,
            .pools = static_cast<uint32_t>(rows_fds_.size()),
            .layout = spec.layout};
  const size_t meta_bytes = MetaBytes(facts_.pools, spec.layout.blocks);
  const size_t rows_bytes = RowsBytes(spec.layout);
  // What a store that died here had allocated counts as used already.
  size_t allocated = 0;
  std::vector<int> fds = {meta_fd};
  for (const UniqueFd& fd : rows_fds_) fds.push_back(fd.get());
  for (int fd : fds) {
    absl::StatusOr<size_t> bytes = AllocatedBytes(fd);
    if (!bytes.ok()) return bytes.status();
    allocated += *bytes;
  }
  absl::Status status =
      CheckMemory(meta_bytes + rows_fds_.size() * rows_bytes, available_bytes + allocated);
  if (!status.ok()) return status;

  for (size_t pool = 0; pool < rows_fds_.size(); ++pool) {
    const int node = pool < spec.nodes.size() ? spec.nodes[pool] : -1;
    const PreferNode prefer(node);
    if (node >= 0 && !prefer.granted()) {
      spdlog::warn("pool {}: node {} of this machine is not to be had; any memory serves", pool,
                   node);
    }
    status = SizeAndPopulate(rows_fds_[pool].get(), rows_bytes);
    if (!status.ok()) return status;
    if (status = SealSize(rows_fds_[pool].get()); !status.ok()) return status;
  }
  if (status = SizeAndPopulate(meta_fd, meta_bytes); !status.ok()) return status;
  absl::StatusOr<Mapping> meta = Mapping::OfFile(meta_fd, meta_bytes, Mapping::Access::kReadWrite);
  if (!meta.ok()) return meta.status();
  meta_ = std::move(*meta);
  // The table is small and its writer must not stop for page faults. Kernels before 5.14 cannot.
  if (madvise(meta_.data(), meta_.size(), MADV_POPULATE_WRITE) != 0 && errno != EINVAL) {
    return absl::ErrnoToStatus(errno, "populating meta");
  }
  std::memset(meta_.data(), 0, meta_.size());  // an unfinished start's header, if there was one
  WriteFacts(facts_, HeaderOf(meta_.data()));
  return SealSize(meta_fd);
}

absl::Status Segment::Adopt(const Spec& spec, int meta_fd) {
  absl::StatusOr<size_t> bytes = FileBytes(meta_fd);
  if (!bytes.ok()) return bytes.status();
  if (*bytes < kPage) return absl::FailedPreconditionError("meta is too short for a segment");
  absl::StatusOr<Mapping> meta = Mapping::OfFile(meta_fd, *bytes, Mapping::Access::kReadWrite);
  if (!meta.ok()) return meta.status();
  facts_ = ReadFacts(*HeaderOf(meta->data()));
  if (!facts_.valid) {
    return absl::FailedPreconditionError(
        absl::StrCat("meta holds no segment of version ", kSegmentVersion));
  }
  SegmentFacts expected = {.valid = true,
                           .segment_id = facts_.segment_id,
                           .fingerprint = spec.fingerprint,
                           .pools = static_cast<uint32_t>(rows_fds_.size()),
                           .layout = spec.layout};
  if (absl::Status status = CompareFacts(facts_, expected); !status.ok()) return status;
  absl::Status status =
      CheckSealedSize("meta", meta_fd, MetaBytes(facts_.pools, spec.layout.blocks));
  if (!status.ok()) return status;
  for (size_t pool = 0; pool < rows_fds_.size(); ++pool) {
    status =
        CheckSealedSize(absl::StrCat("pool ", pool), rows_fds_[pool].get(), RowsBytes(spec.layout));
    if (!status.ok()) return status;
  }
  meta_ = std::move(*meta);
  return absl::OkStatus();
}

absl::StatusOr<Mapping> Segment::MapRows(uint32_t pool) const {
  return Mapping::OfFile(rows_fd(pool), RowsBytes(facts_.layout), Mapping::Access::kRead);
}

size_t Segment::bytes() const { return meta_.size() + rows_fds_.size() * RowsBytes(facts_.layout); }

}  // namespace sparsekv::kv_store
