#include "gpu_worker/page_pool.h"

#include "base/check.h"

namespace sparsekv {

PagePool::PagePool(size_t page_bytes, std::byte* memory, uint32_t pages)
    : page_bytes_(page_bytes), total_pages_(pages) {
  free_.reserve(pages);
  for (uint32_t page = pages; page-- > 0;) free_.push_back(memory + page * page_bytes);
}

bool PagePool::Take(uint32_t count, std::vector<std::byte*>& pages) {
  if (count > free_.size()) return false;
  for (uint32_t i = 0; i < count; ++i) {
    pages.push_back(free_.back());
    free_.pop_back();
  }
  return true;
}

void PagePool::Return(std::vector<std::byte*>& pages) {
  for (std::byte* page : pages) free_.push_back(page);
  pages.clear();
  CHECK_LE(free_.size(), total_pages_);
}

}  // namespace sparsekv
