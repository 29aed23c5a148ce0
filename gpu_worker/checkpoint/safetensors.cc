#include "gpu_worker/checkpoint/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "absl/status/status.h"
#include "base/check.h"
#include "base/concat.h"
#include "gpu_worker/checkpoint/safetensors_header.h"

namespace sparsekv {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian");

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // as the format's own library has it
constexpr uint64_t kLengthBytes = 8;

absl::Status FileError(const std::string& path, std::string_view what) {
  return absl::InvalidArgumentError(Concat(path, ": ", what));
}

absl::Status SystemError(const std::string& path, int error) {
  const std::string what = Concat(path, ": ", strerror(error));
  return error == ENOENT || error == ENOTDIR ? absl::NotFoundError(what) : absl::UnknownError(what);
}

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile(path));
  if (absl::Status mapped = file->Map(); !mapped.ok()) return mapped;
  if (absl::Status read = file->ReadHeader(); !read.ok()) return read;
  return file;
}

SafetensorsFile::~SafetensorsFile() {
  if (base_ != nullptr) CHECK_EQ(munmap(const_cast<std::byte*>(base_), bytes_), 0);
}

const SafetensorsEntry* SafetensorsFile::Find(std::string_view name) const {
  const auto found = entries_.find(name);
  return found == entries_.end() ? nullptr : &found->second;
}

absl::Status SafetensorsFile::Map() {
  // Symbolic links are followed (hub caches are made of them); what they lead to must be a regular
  // file. O_NONBLOCK: opening a FIFO must not wait for a writer.
  const int fd = open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return SystemError(path_, errno);
  struct stat before;
  struct stat after;
  absl::Status status;
  if (fstat(fd, &before) != 0) {
    status = SystemError(path_, errno);
  } else if (!S_ISREG(before.st_mode)) {
    status = FileError(path_, "not a regular file");
  } else if (static_cast<uint64_t>(before.st_size) < kLengthBytes + 2) {
    status = FileError(path_, "too short for a safetensors file");
  } else {
    bytes_ = static_cast<size_t>(before.st_size);
    void* mapped = mmap(nullptr, bytes_, PROT_READ, MAP_PRIVATE, fd, 0);
    if (mapped == MAP_FAILED) {
      status = SystemError(path_, errno);
    } else {
      base_ = static_cast<const std::byte*>(mapped);
      if (fstat(fd, &after) != 0 || after.st_size != before.st_size) {
        status = FileError(path_, "its size changed while it was opened");
      }
    }
  }
  close(fd);
  return status;
}

absl::Status SafetensorsFile::ReadHeader() {
  uint64_t header_bytes = 0;
  memcpy(&header_bytes, base_, sizeof header_bytes);
  if (header_bytes > std::min<uint64_t>(kMaxHeaderBytes, bytes_ - kLengthBytes)) {
    return FileError(path_, Concat("its header claims ", header_bytes, " bytes of a file of ",
                                   bytes_, " (at most ", kMaxHeaderBytes, ")"));
  }
  const std::byte* data = base_ + kLengthBytes + header_bytes;
  const std::string_view header(reinterpret_cast<const char*>(base_ + kLengthBytes), header_bytes);
  absl::StatusOr<std::vector<SafetensorsRecord>> records =
      ParseSafetensorsHeader(header, bytes_ - kLengthBytes - header_bytes);
  if (!records.ok()) return FileError(path_, std::string(records.status().message()));

  for (SafetensorsRecord& record : *records) {
    SafetensorsEntry entry;
    entry.dtype_name = std::move(record.dtype_name);
    entry.dtype = record.dtype;
    entry.shape = std::move(record.shape);
    entry.data = data + record.begin;
    entry.bytes = record.end - record.begin;
    const bool misaligned =
        entry.dtype && reinterpret_cast<uintptr_t>(entry.data) % SizeOf(*entry.dtype) != 0;
    if (misaligned && entry.bytes > 0) {
      // new[] of bytes is aligned for every fundamental type.
      realigned_.push_back(std::make_unique_for_overwrite<std::byte[]>(entry.bytes));
      memcpy(realigned_.back().get(), entry.data, entry.bytes);
      entry.data = realigned_.back().get();
    }
    const bool inserted = entries_.emplace(std::move(record.name), std::move(entry)).second;
    CHECK(inserted);
  }
  return absl::OkStatus();
}

}  // namespace sparsekv
