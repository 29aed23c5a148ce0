#include "gpu_worker/label_pool.h"

#include "base/check.h"

namespace sparsekv {

LabelPool::LabelPool(const LabelLayout& layout, std::byte* memory, uint32_t pages)
    : layout_(layout), total_pages_(pages) {
  free_.reserve(pages);
  for (uint32_t page = pages; page-- > 0;) free_.push_back(memory + page * layout.page_bytes());
}

bool LabelPool::Take(uint32_t count, std::vector<std::byte*>& pages) {
  if (count > free_.size()) return false;
  for (uint32_t i = 0; i < count; ++i) {
    pages.push_back(free_.back());
    free_.pop_back();
  }
  return true;
}

void LabelPool::Return(std::vector<std::byte*>& pages) {
  for (std::byte* page : pages) free_.push_back(page);
  pages.clear();
  CHECK_LE(free_.size(), total_pages_);
}

}  // namespace sparsekv
