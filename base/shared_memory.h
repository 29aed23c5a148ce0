#pragma once

#include <cstddef>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Descriptors, sealed memfds and mappings: what processes that share memory need from the kernel.
// Shared memory here never has a name: a memfd goes away with the last descriptor, however its
// holders died. Every function may be called from any thread; operating errors come back as a
// Status.
namespace sparsekv {

// Owns one file descriptor; -1 owns none.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept;
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  ~UniqueFd();

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_ = -1;
};

// An empty memfd that can be sealed, close-on-exec. `name` is for /proc only.
absl::StatusOr<UniqueFd> CreateMemfd(const std::string& name);

// A second, read-only open of the same file. Whoever gets this descriptor cannot map it writable,
// unlike with a duplicate, which keeps the first one's access mode.
absl::StatusOr<UniqueFd> ReopenReadOnly(int fd);

absl::StatusOr<size_t> FileBytes(int fd);       // its size
absl::StatusOr<size_t> AllocatedBytes(int fd);  // memory that it has already

// Sets the size and allocates every page, in slices, so that no later access can fail for lack of
// memory (SIGBUS). May be repeated after it was interrupted.
absl::Status SizeAndPopulate(int fd, size_t bytes);

// Fixes the size for good, whoever holds the descriptor: no peer can cut a file under a reader.
// Contents stay writable. Sealing twice is not an error.
absl::Status SealSize(int fd);
// Whether SealSize was done; an error for a descriptor that is no memfd.
absl::StatusOr<bool> IsSizeSealed(int fd);

// Owns a mapping. Independent of the descriptor that it was made from.
class Mapping {
 public:
  enum class Access { kRead, kReadWrite };

  Mapping() = default;
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping();

  // Maps the first `bytes` of a file, shared; they must lie inside it.
  static absl::StatusOr<Mapping> OfFile(int fd, size_t bytes, Access access);
  // Private zeroed memory, allocated as it is touched.
  static absl::StatusOr<Mapping> Anonymous(size_t bytes);

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  Mapping(std::byte* data, size_t size) : data_(data), size_(size) {}

  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace sparsekv
