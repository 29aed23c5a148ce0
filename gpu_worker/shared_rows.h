#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/row_layout.h"
#include "kernels/backend.h"

namespace sparsekv {

// The segment's rows, where the device may read and write them as long as this lives. Registering
// host memory takes a device about 0.05 to 0.1 s per GiB, so it is done in chunks, each when a
// sequence first gets blocks in it. Belongs to the device thread; pool and backend outlive it.
//
// Mirrored, they are kept twice: whoever writes rows writes them to `mirror` too, in the same
// layout, and a device reads them there, where their pages are large ones. The segment is what
// other processes see, and what is left when this one ends. A chunk's mirror is touched when the
// chunk is registered, which takes as long again, and given back at the end only.
class SharedRows {
 public:
  struct Options {
    Backend* backend = nullptr;
    std::byte* pool = nullptr;
    RowLayout layout;
    size_t chunk_bytes = size_t{256} << 20;  // a multiple of the page size
    // Workers that name the same file register one after the other: at the same time they stand in
    // each other's way for minutes. "" = alone on this machine.
    std::string lock_file;
    std::byte* mirror = nullptr;  // of the backend's AllocateOnLargePages, as large as the pool
  };
  explicit SharedRows(const Options& options);  // the mirror is its own from then on
  ~SharedRows();
  SharedRows(const SharedRows&) = delete;
  SharedRows& operator=(const SharedRows&) = delete;

  // Before operations are given rows of these blocks; outside of steps. RESOURCE_EXHAUSTED, one
  // line, when the device cannot have them; what it has until then it keeps.
  absl::Status Use(std::span<const uint32_t> blocks);

  // Where the device reads rows: the mirror, else the pool.
  std::byte* read_pool() const { return options_.mirror ? options_.mirror : options_.pool; }
  // Null: none.
  std::byte* mirror() const { return options_.mirror; }
  size_t chunks() const { return registered_.size(); }
  size_t registered_bytes() const { return registered_bytes_; }

 private:
  size_t ChunkBytes(size_t chunk) const;
  absl::Status Register(std::span<const size_t> chunks);
  void TouchMirror(size_t chunk);

  const Options options_;
  std::vector<bool> registered_;  // by chunk
  size_t registered_bytes_ = 0;
};

}  // namespace sparsekv
