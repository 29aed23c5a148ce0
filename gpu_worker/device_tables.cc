#include "gpu_worker/device_tables.h"

namespace sparsekv {

namespace {
constexpr size_t kAlign = 16;
}

TableSpace& TableSpace::operator=(TableSpace&& other) noexcept {
  std::swap(tables_, other.tables_);
  std::swap(index_, other.index_);
  std::swap(used_, other.used_);
  return *this;
}

TableSpace::~TableSpace() {
  if (tables_ && tables_->memory_) tables_->free_.push_back(index_);
}

const void* TableSpace::PutBytes(const void* table, size_t bytes) {
  CHECK(tables_ != nullptr);
  if (tables_->memory_ == nullptr) return table;
  const size_t offset = (used_ + kAlign - 1) / kAlign * kAlign;
  CHECK_LE(offset + bytes, tables_->bytes_each_);
  used_ = offset + bytes;
  std::byte* to = tables_->memory_ + index_ * tables_->bytes_each_ + offset;
  if (bytes > 0) tables_->backend_->Upload(to, table, bytes);
  return to;
}

DeviceTables::DeviceTables(Backend* backend, std::byte* memory, size_t bytes_each,
                           uint32_t sequences)
    : backend_(backend), memory_(memory), bytes_each_(bytes_each) {
  for (uint32_t i = memory ? sequences : 0; i-- > 0;) free_.push_back(i);
}

TableSpace DeviceTables::Take() {
  TableSpace space;
  space.tables_ = this;
  if (memory_ == nullptr) return space;
  CHECK(!free_.empty());
  space.index_ = free_.back();
  free_.pop_back();
  return space;
}

}  // namespace sparsekv
