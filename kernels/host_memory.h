#pragma once

#include <cstddef>

namespace sparsekv {

// What host backends allocate: zeroed, aligned to 256 bytes, not touched before it is used where it
// is large. Null when there is not so much.
std::byte* AllocateOnHost(size_t bytes);
void FreeOnHost(std::byte* memory);

}  // namespace sparsekv
