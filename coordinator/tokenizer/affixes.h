#pragma once

#include <cstdint>
#include <vector>

namespace sparsekv::tokenizer {

// The ids that a rule of the tokenizer puts before and after a text.
struct Affixes {
  std::vector<uint32_t> prefix;
  std::vector<uint32_t> suffix;
};

}  // namespace sparsekv::tokenizer
