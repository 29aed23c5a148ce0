#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/check.h"
#include "kernels/backend.h"

namespace sparsekv {

class DeviceTables;

// What operations look up about one sequence, where the device can read it: its blocks and pages.
// Gives its place back when it goes.
class TableSpace {
 public:
  TableSpace() = default;
  TableSpace(TableSpace&& other) noexcept { *this = std::move(other); }
  TableSpace& operator=(TableSpace&& other) noexcept;
  ~TableSpace();

  // The device's view of a table that does not change any more and outlives this: a copy, or the
  // table itself where the device reads the host's memory.
  template <typename T>
  const T* Put(const std::vector<T>& table) {
    return static_cast<const T*>(PutBytes(table.data(), table.size() * sizeof(T)));
  }

 private:
  friend class DeviceTables;
  const void* PutBytes(const void* table, size_t bytes);

  DeviceTables* tables_ = nullptr;
  uint32_t index_ = 0;
  size_t used_ = 0;
};

// Room for the tables of as many sequences as a step may have. Belongs to the device thread; the
// memory is the arena's.
class DeviceTables {
 public:
  // `memory`: sequences * bytes_each; null where the device reads the host's memory.
  DeviceTables(Backend* backend, std::byte* memory, size_t bytes_each, uint32_t sequences);

  // REQUIRES: fewer than `sequences` are out.
  TableSpace Take();

 private:
  friend class TableSpace;

  Backend* const backend_;
  std::byte* const memory_;
  const size_t bytes_each_;
  std::vector<uint32_t> free_;
};

}  // namespace sparsekv
