#include "base/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/str_cat.h"

namespace sparsekv {
namespace {

constexpr int kSizeSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
// One call over hundreds of GiB would neither answer a signal nor say how far it came.
constexpr size_t kPopulateSlice = size_t{256} << 20;

absl::Status ErrnoStatus(const std::string& what) { return absl::ErrnoToStatus(errno, what); }

absl::StatusOr<struct stat> Stat(int fd) {
  struct stat info = {};
  if (fstat(fd, &info) != 0) return ErrnoStatus(absl::StrCat("fstat of descriptor ", fd));
  return info;
}

}  // namespace

UniqueFd& UniqueFd::operator=(UniqueFd&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) close(fd_);
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

UniqueFd::~UniqueFd() {
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<UniqueFd> CreateMemfd(const std::string& name) {
  UniqueFd fd(memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) return ErrnoStatus(absl::StrCat("memfd_create ", name));
  return fd;
}

absl::StatusOr<UniqueFd> ReopenReadOnly(int fd) {
  UniqueFd reopened(open(absl::StrCat("/proc/self/fd/", fd).c_str(), O_RDONLY | O_CLOEXEC));
  if (!reopened) return ErrnoStatus(absl::StrCat("reopening descriptor ", fd, " read-only"));
  return reopened;
}

absl::StatusOr<size_t> FileBytes(int fd) {
  absl::StatusOr<struct stat> info = Stat(fd);
  if (!info.ok()) return info.status();
  return static_cast<size_t>(info->st_size);
}

absl::StatusOr<size_t> AllocatedBytes(int fd) {
  absl::StatusOr<struct stat> info = Stat(fd);
  if (!info.ok()) return info.status();
  return static_cast<size_t>(info->st_blocks) *
         512;  // the unit of st_blocks, whatever the page size
}

absl::Status SizeAndPopulate(int fd, size_t bytes) {
  if (ftruncate(fd, static_cast<off_t>(bytes)) != 0) {
    return ErrnoStatus(
        absl::StrCat("setting the size of descriptor ", fd, " to ", bytes, " bytes"));
  }
  for (size_t offset = 0; offset < bytes; offset += kPopulateSlice) {
    const size_t slice = std::min(kPopulateSlice, bytes - offset);
    int result = 0;
    do {
      result = fallocate(fd, 0, static_cast<off_t>(offset), static_cast<off_t>(slice));
    } while (result != 0 && errno == EINTR);
    if (result != 0) {
      return ErrnoStatus(
          absl::StrCat("allocating bytes ", offset, " to ", offset + slice, " of ", bytes));
    }
  }
  return absl::OkStatus();
}

absl::Status SealSize(int fd) {
  absl::StatusOr<bool> sealed = IsSizeSealed(fd);
  if (!sealed.ok()) return sealed.status();
  if (*sealed) return absl::OkStatus();
  if (fcntl(fd, F_ADD_SEALS, kSizeSeals) != 0) {
    return ErrnoStatus(absl::StrCat("sealing descriptor ", fd));
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> IsSizeSealed(int fd) {
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0) return ErrnoStatus(absl::StrCat("descriptor ", fd, " is not a memfd"));
  return (seals & kSizeSeals) == kSizeSeals;
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  if (this != &other) {
    if (data_) munmap(data_, size_);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
  }
  return *this;
}

Mapping::~Mapping() {
  if (data_) munmap(data_, size_);
}

absl::StatusOr<Mapping> Mapping::OfFile(int fd, size_t bytes, Access access) {
  absl::StatusOr<size_t> file_bytes = FileBytes(fd);
  if (!file_bytes.ok()) return file_bytes.status();
  if (bytes > *file_bytes) {
    return absl::FailedPreconditionError(
        absl::StrCat("mapping ", bytes, " bytes of a file that has ", *file_bytes));
  }
  const int protection = access == Access::kRead ? PROT_READ : PROT_READ | PROT_WRITE;
  void* data = mmap(nullptr, bytes, protection, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) return ErrnoStatus(absl::StrCat("mapping ", bytes, " bytes"));
  return Mapping(static_cast<std::byte*>(data), bytes);
}

absl::StatusOr<Mapping> Mapping::Anonymous(size_t bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) return ErrnoStatus(absl::StrCat("mapping ", bytes, " bytes"));
  return Mapping(static_cast<std::byte*>(data), bytes);
}

}  // namespace sparsekv
