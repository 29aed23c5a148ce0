#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

// How a worker gets the segment. It connects to the store's attach socket (packets,
// base/unix_socket.h) and sends one AttachHello; the store answers with one AttachReply that
// carries, if the status is kOk, two descriptors: meta (read-only) and the rows of the worker's
// pool; where the store offers gather, three more: its memory (kv_store/gather_layout.h), the
// doorbell and the completion eventfd. Nothing else is ever sent, and the connection stays open:
// its hang-up tells each side at once that the other is gone. Both sides refuse a peer of another
// user.
namespace sparsekv::kv_store {

inline constexpr uint64_t kAttachMagic = 0x5350'4b56'4154'5431;  // "SPKVATT1" from the high byte
inline constexpr uint32_t kAttachVersion = 2;
inline constexpr size_t kAttachFds = 2;
inline constexpr size_t kAttachFdsWithGather = 5;

struct AttachHello {
  uint64_t magic;
  uint32_t version;
  uint32_t pool;
  uint64_t worker_boot_id;  // not 0
};
static_assert(sizeof(AttachHello) == 24 && std::is_trivially_copyable_v<AttachHello>);

enum class AttachStatus : uint32_t {
  kOk = 0,
  kBadHello = 1,    // not an AttachHello, or without a boot id
  kBadVersion = 2,  // the reply's version is the store's
  kBadPool = 3,
  kPoolBusy = 4,  // another worker is attached to the pool: holder_boot_id
};

struct AttachReply {
  uint64_t magic;
  uint32_t version;
  uint32_t status;  // AttachStatus
  uint64_t store_boot_id;
  uint64_t segment_id;
  uint64_t holder_boot_id;  // kPoolBusy only
};
static_assert(sizeof(AttachReply) == 40 && std::is_trivially_copyable_v<AttachReply>);

}  // namespace sparsekv::kv_store
