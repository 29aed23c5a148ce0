#include "gpu_worker/shared_rows.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"

namespace sparsekv {

namespace {

// One holder on this machine, as long as it lives. A lock that cannot be had costs time, not
// correctness, so its errors are not.
class FileLock {
 public:
  explicit FileLock(const std::string& path)
      : fd_(path.empty() ? -1 : open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600)) {
    while (fd_ >= 0 && flock(fd_, LOCK_EX) != 0 && errno == EINTR) {
    }
  }
  ~FileLock() {
    if (fd_ >= 0) close(fd_);
  }
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  const int fd_;
};

double GiB(size_t bytes) { return static_cast<double>(bytes) / (size_t{1} << 30); }

}  // namespace

SharedRows::SharedRows(const Options& options)
    : options_(options),
      registered_((options.layout.pool_bytes() + options.chunk_bytes - 1) / options.chunk_bytes) {}

SharedRows::~SharedRows() {
  for (size_t chunk = 0; chunk < registered_.size(); ++chunk) {
    if (!registered_[chunk]) continue;
    options_.backend->Unshare(options_.pool + chunk * options_.chunk_bytes, ChunkBytes(chunk));
  }
  if (options_.mirror) options_.backend->FreeLargePages(options_.mirror);
}

// Before the device writes there, which would else wait for every page.
void SharedRows::TouchMirror(size_t chunk) {
  if (!options_.mirror) return;
  constexpr size_t kPage = 4096;
  auto* at = static_cast<volatile std::byte*>(options_.mirror + chunk * options_.chunk_bytes);
  for (size_t i = 0; i < ChunkBytes(chunk); i += kPage) at[i] = std::byte{0};
}

size_t SharedRows::ChunkBytes(size_t chunk) const {
  return std::min(options_.chunk_bytes,
                  options_.layout.pool_bytes() - chunk * options_.chunk_bytes);
}

absl::Status SharedRows::Use(std::span<const uint32_t> blocks) {
  const RowLayout& layout = options_.layout;
  std::vector<bool> wanted(registered_.size());
  for (uint32_t layer = 0; layer < layout.layers; ++layer) {
    for (uint32_t block : blocks) {
      CHECK_LT(block, layout.blocks);
      const size_t begin = layer * layout.layer_stride() + block * layout.block_stride();
      const size_t last = (begin + layout.block_stride() - 1) / options_.chunk_bytes;
      for (size_t chunk = begin / options_.chunk_bytes; chunk <= last; ++chunk) {
        wanted[chunk] = !registered_[chunk];
      }
    }
  }
  std::vector<size_t> chunks;
  for (size_t chunk = 0; chunk < wanted.size(); ++chunk) {
    if (wanted[chunk]) chunks.push_back(chunk);
  }
  if (chunks.empty()) return absl::OkStatus();
  if (absl::Status status = Register(chunks); !status.ok()) return status;
  for (size_t chunk : chunks) TouchMirror(chunk);
  return absl::OkStatus();
}

absl::Status SharedRows::Register(std::span<const size_t> chunks) {
  using Clock = std::chrono::steady_clock;
  constexpr auto kShowAfter = std::chrono::seconds(2);
  const Clock::time_point begin = Clock::now();
  Clock::time_point shown = begin;
  const FileLock lock(options_.lock_file);
  for (size_t i = 0; i < chunks.size(); ++i) {
    std::byte* memory = options_.pool + chunks[i] * options_.chunk_bytes;
    const size_t bytes = ChunkBytes(chunks[i]);
    std::string why;
    if (!options_.backend->Share(memory, bytes, &why)) {
      return absl::ResourceExhaustedError(absl::StrCat("segment: the device cannot have ", bytes,
                                                       " bytes of host memory beside ",
                                                       registered_bytes_, " that it has: ", why));
    }
    if (!why.empty()) spdlog::warn("segment: {} bytes as pageable memory, slow: {}", bytes, why);
    registered_[chunks[i]] = true;
    registered_bytes_ += bytes;
    if (Clock::now() - shown < kShowAfter) continue;
    shown = Clock::now();
    spdlog::info("segment: registering, {} of {} chunks", i + 1, chunks.size());
  }
  spdlog::info("segment: {:.2f} of {:.2f} GiB registered, {} chunks in {:.3f} s",
               GiB(registered_bytes_), GiB(options_.layout.pool_bytes()), chunks.size(),
               std::chrono::duration<double>(Clock::now() - begin).count());
  return absl::OkStatus();
}

}  // namespace sparsekv
