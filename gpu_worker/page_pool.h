#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sparsekv {

// Pages of one size on the device and who has them: labels, and the maps of hot rows; a page is for
// 64 tokens of one sequence. Owned by the device thread. Nothing is allocated after construction;
// memory belongs to the arena.
class PagePool {
 public:
  // `memory` holds pages * page_bytes bytes and outlives the pool.
  PagePool(size_t page_bytes, std::byte* memory, uint32_t pages);

  // Appends `count` pages to `pages`, all or none; false when fewer are free.
  bool Take(uint32_t count, std::vector<std::byte*>& pages);
  // Gives pages back and empties the vector.
  void Return(std::vector<std::byte*>& pages);

  size_t page_bytes() const { return page_bytes_; }
  uint32_t total_pages() const { return total_pages_; }
  uint32_t free_pages() const { return static_cast<uint32_t>(free_.size()); }
  size_t used_bytes() const { return (total_pages_ - free_.size()) * page_bytes_; }

 private:
  const size_t page_bytes_;
  const uint32_t total_pages_;
  std::vector<std::byte*> free_;
};

}  // namespace sparsekv
