#pragma once

#include <cstdint>

namespace sparsekv {

// Rows that an offloaded sequence can select in one step: its slots are named by 16 bits, one value
// of which means none, and come in blocks of 64. Workers and coordinator must agree on it.
inline constexpr uint32_t kMostOffloadedSelection = 65535 / 64 * 64;

}  // namespace sparsekv
