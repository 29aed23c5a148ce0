#pragma once

#include <cstddef>
#include <cstdint>

namespace sparsekv::chat {

// What one template may take. Past any of these parsing or rendering ends with an error that names
// it.
struct TemplateLimits {
  size_t source_bytes = size_t{1} << 20;
  size_t output_bytes = size_t{16} << 20;   // of the text, and of every string on the way there
  size_t memory_bytes = size_t{256} << 20;  // of all values that rendering makes
  size_t items = size_t{1} << 20;           // of one list, tuple, dictionary or range
  uint64_t steps = 20'000'000;              // one per node evaluated; long strings cost more
  uint32_t parse_depth = 100;               // brackets and blocks inside each other
  uint32_t depth = 1000;                    // nodes, calls and values inside each other
};

}  // namespace sparsekv::chat
