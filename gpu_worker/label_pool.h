#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/labels.h"

namespace sparsekv {

// The device's label pages and who has them. Owned by the device thread. Nothing is allocated after
// construction; memory belongs to the arena.
class LabelPool {
 public:
  // `memory` holds pages * layout.page_bytes() bytes and outlives the pool.
  LabelPool(const LabelLayout& layout, std::byte* memory, uint32_t pages);

  // Appends `count` pages to `pages`, all or none; false when fewer are free.
  bool Take(uint32_t count, std::vector<std::byte*>& pages);
  // Gives pages back and empties the vector.
  void Return(std::vector<std::byte*>& pages);

  const LabelLayout& layout() const { return layout_; }
  uint32_t total_pages() const { return total_pages_; }
  uint32_t free_pages() const { return static_cast<uint32_t>(free_.size()); }

 private:
  LabelLayout layout_;
  uint32_t total_pages_;
  std::vector<std::byte*> free_;
};

}  // namespace sparsekv
